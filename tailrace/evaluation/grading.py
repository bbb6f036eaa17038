"""Answers as samples with scores: by the scorers that look at a text, and by what judges have said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tailrace.evaluation import outcomes, requests, scorers, suite
from tailrace.evaluation.prompts import Prompts
from tailrace.evaluation.scorers.judge import Judge
from tailrace.evaluation.scorers.refusals import is_refusal
from tailrace.evaluation.shapes import Answer, Arm, Failure, Item, Outcome, Sample, Score


class Cell(NamedTuple):
    """One request of a run."""

    arm: Arm
    item: Item
    sample: int


class Asking:
    """What a suite asks of its items: arms, cells and the messages of each."""

    def __init__(self, what: suite.Suite, items: Sequence[Item]) -> None:
        self.arms = requests.arms(what)
        self.items = items
        self.samples = what.samples
        prompts = {prompt.name: Prompts(prompt) for prompt in what.prompts}
        self._messages = {
            (name, item.id): prompt.messages(item) for name, prompt in prompts.items() for item in items
        }

    def cells(self, arm: Arm) -> dict[str, Cell]:
        """By custom_id, all samples of an item behind one another."""
        return {
            requests.custom_id(item.id, sample): Cell(arm, item, sample)
            for item in self.items
            for sample in range(self.samples)
        }

    def messages(self, cell: Cell) -> list[dict[str, Any]]:
        return self._messages[cell.arm.prompt.name, cell.item.id]

    def row(self, cell: Cell, *, fresh: bool = False) -> dict[str, Any]:
        return requests.row(cell.arm, cell.item, cell.sample, self.messages(cell), fresh=fresh)


class Grader:
    """The scorers of a suite; ``folder`` is where its file is. Raises TailraceError where one of them can't work.
    ``close`` ends what they have started."""

    def __init__(self, specs: Iterable[suite.Scorer], folder: Path, asking: Asking) -> None:
        self._asking = asking
        self.labels: list[str] = []
        self.judges: dict[str, Judge] = {}
        self._scorers: list[scorers.Scorer] = []
        try:
            for spec in specs:
                scorers.check_items(spec, asking.items)
                self.labels.append(spec.label)
                if isinstance(spec, suite.Judge):
                    self.judges[spec.label] = Judge(spec)
                else:
                    self._scorers.append(scorers.make(spec, folder))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for scorer in self._scorers:
            scorer.close()

    def stop(self) -> None:
        """For another thread: what is being graded is given up, and raises Stopped."""
        for scorer in self._scorers:
            scorer.stop()

    def samples(self, lines: Iterable[tuple[Cell, dict[str, Any] | None]]) -> list[Sample]:
        """Lines of a batch (None: none yet) as samples, with the scores of all but judges. It blocks. Raises
        Stopped."""
        asked = list(lines)
        found = [
            outcomes.sample_of(cell.arm, cell.item, cell.sample, line, is_refusal) for cell, line in asked
        ]
        texts = [n for n, sample in enumerate(found) if sample.text is not None and _has_answer(sample)]
        answers = [self.answer(asked[n][0], found[n]) for n in texts]
        scores: list[dict[str, Score]] = [{} for _ in texts]
        for scorer in self._scorers:
            for mine, score in zip(scores, scorer.score(answers), strict=True):
                mine[scorer.label] = score
        for n, mine in zip(texts, scores, strict=True):
            found[n] = msgspec.structs.replace(found[n], scores=mine)
        return found

    def answer(self, cell: Cell, sample: Sample) -> Answer:
        return Answer(cell.item, sample.text or "", self._asking.messages(cell))


def judged(judge: Judge, line: dict[str, Any]) -> Score:
    """What a line of a judge's batch says."""
    said = outcomes.answer_of(line)
    if isinstance(said, Failure):
        return Score(None, error=f"the judge gave no answer: {said.message}")
    return judge.verdict(said)


def with_score(sample: Sample, scorer: str, score: Score) -> Sample:
    return msgspec.structs.replace(sample, scores={**sample.scores, scorer: score})


def _has_answer(sample: Sample) -> bool:
    return sample.outcome not in (Outcome.ERROR, Outcome.MISSING)
