"""A run, from its folder to its report, by as many commands as it takes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

import tailrace
from tailrace.amounts import NANO
from tailrace.errors import TailraceError
from tailrace.evaluation import dataset, lines, loading, outcomes, outputs, requests
from tailrace.evaluation.fanout import Fanout, Work
from tailrace.evaluation.figures import Figures
from tailrace.evaluation.folder import ITEMS, Folder, Status, every
from tailrace.evaluation.grading import Asking, Cell, Grader, judged, with_score
from tailrace.evaluation.lines import Lines
from tailrace.evaluation.results import encode
from tailrace.evaluation.scorers.judge import Judge
from tailrace.evaluation.scorers.refusals import is_refusal
from tailrace.evaluation.shapes import Outcome, Record, Sample, Score
from tailrace.evaluation.summarise import JudgeWork

#: Earlier runs that are looked through for answers to the same requests.
REUSED_RUNS = 20


class Observer(Protocol):
    """Who shows how a run is going."""

    def begin(self, works: list[Work]) -> None:
        """These are worked on from now."""

    def batch(self, work: Work, now: dict[str, Any]) -> None:
        """How the batch of one of them is doing."""

    def scores(self, work: Work, means: Mapping[str, float]) -> None:
        """Running scores of an arm, by scorer."""

    def ended(self, work: Work) -> None:
        """Its batch has its end, and all of its answers are there."""

    def told(self, line: str) -> None: ...


class Run:
    """What a run's folder asks for, ready to be worked on. Raises TailraceError where a template, a scorer or a target
    can't be right: all of that is found before anything is asked."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        manifest = folder.manifest
        self.suite = loading.restore(manifest.suite)
        self.items = dataset.read_written(folder.path / ITEMS)
        self.asking = Asking(self.suite, self.items)
        self.grader = Grader(self.suite.scorers, Path(manifest.source).parent, self.asking)
        self.cells: dict[str, dict[str, Cell]] = {}
        self.works = [self._work(n) for n in range(len(self.asking.arms))]
        self._samples: dict[str, dict[str, Sample]] = {work.name: {} for work in self.works}
        self._grading = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.grader.close()

    def _work(self, n: int) -> Work:
        """An arm's rows. The concurrency is shared out evenly."""
        arm, arms = self.asking.arms[n], len(self.asking.arms)
        name = requests.file_name(arm.key)
        cells = self.cells[name] = self.asking.cells(arm)
        fresh = self.folder.manifest.fresh

        def row(id: str) -> dict[str, Any]:
            return self.asking.row(cells[id], fresh=fresh)

        most = self.suite.max_concurrency
        return Work(
            name=name,
            label=arm.key,
            lines=Lines(self.folder.answers(name)),
            asked={id: requests.digest(row(id)) for id in cells},
            row=row,
            concurrency=max(1, most // arms + (n < most % arms)),
        )

    # -------------------------------------------------------------------------------------------- before it is asked

    def reuse(self, runs: Path) -> dict[str, int]:
        """Take answers to the very same requests, on the same server, from earlier runs of the suite: run → count."""
        manifest = self.folder.manifest
        wanted = {(work.asked[id], work.name, id): work for work in self.works for id in work.pending()}
        by_request: dict[str, list[tuple[Work, str]]] = {}
        for (asked, _, id), work in wanted.items():
            by_request.setdefault(asked, []).append((work, id))
        taken: dict[str, int] = {}
        earlier = (
            other
            for other in every(runs)
            if other.manifest.id != manifest.id
            and other.manifest.name == manifest.name
            and other.manifest.server == manifest.server
        )
        for other, _ in zip(earlier, range(REUSED_RUNS), strict=False):
            if not by_request:
                break
            found: dict[str, list[tuple[str, bytes]]] = {}
            for path in sorted((other.path / "answers").glob("*.jsonl")):
                for asked, line in Lines(path).by_request():
                    for work, id in by_request.pop(asked, ()):
                        found.setdefault(work.name, []).append((id, _taken(line, id, other.manifest.id)))
            for work in self.works:
                if found.get(work.name):
                    work.lines.merge(found[work.name], work.asked)
            count = sum(map(len, found.values()))
            if count:
                taken[other.manifest.id] = count
        return taken

    # --------------------------------------------------------------------------------------------------------- asked

    async def ask(
        self, client: tailrace.Client, observer: Observer, *, budget: float | None = None
    ) -> Status:
        """Ask for what has no answer, have it judged, and write the results; how the run stands then.

        ``budget`` (dollars) is in place of the suite's. Raises TailraceError. Cancelled, what is under way goes on, and
        the same call goes on with it later.
        """
        manifest = self.folder.manifest
        manifest.status, manifest.reason, manifest.ended = "running", None, None
        self.folder.save()
        started, before = time.monotonic(), manifest.seconds
        budget = self.suite.budget if budget is None else budget
        watcher = _Watcher(self, observer)
        fanout = Fanout(
            client,
            self.folder,
            watcher,
            budget_nano=None if budget is None else round(budget * NANO),
            max_error_rate=self.suite.max_error_rate,
        )
        try:
            for work in self.works:
                await fanout.catch_up(work)
            for work in self.works:
                if not fanout.is_under_way(work):
                    await fanout.check(work)
            observer.begin(self.works)
            await _together([fanout.finish(work) for work in self.works], self.suite.max_concurrency)
            judges = await asyncio.to_thread(self._judge_works)
            if judges:
                for work in judges:
                    await fanout.catch_up(work)
                    if not fanout.is_under_way(work):
                        await fanout.check(work)
                observer.begin(judges)
                await _together([fanout.finish(work) for work in judges], self.suite.max_concurrency)
        except BaseException as error:
            self.grader.stop()  # a thread may grade, and a user's function hang
            if isinstance(error, TailraceError):
                manifest.status, manifest.reason = "failed", str(error)
            raise
        finally:
            manifest.seconds = before + time.monotonic() - started
            self.folder.save()
        try:
            await asyncio.to_thread(self.conclude, fanout.stopped, fanout.failures)
        except asyncio.CancelledError:
            self.grader.stop()
            raise
        return manifest.status

    def _judge_works(self) -> list[Work]:
        """What judges have to grade, of all arms."""
        if not self.grader.judges:
            return []
        samples = self.samples()
        works: list[Work] = []
        for label, judge in self.grader.judges.items():
            rows: dict[str, dict[str, Any]] = {}
            for id, (cell, sample) in samples.items():
                row, _ = self._judge_row(judge, id, cell, sample)
                if row is not None:
                    rows[id] = row
            works.append(
                Work(
                    name=f"judged/{requests.file_name(label)}",
                    label=f"judge {label}",
                    lines=Lines(self.folder.judged(requests.file_name(label))),
                    asked={id: requests.digest(row) for id, row in rows.items()},
                    row=rows.__getitem__,
                    concurrency=max(1, self.suite.max_concurrency // len(self.grader.judges)),
                )
            )
        return works

    def _judge_row(
        self, judge: Judge, id: str, cell: Cell, sample: Sample
    ) -> tuple[dict[str, Any] | None, str | None]:
        """What a judge is asked of a sample; or why it isn't: None where there is nothing to judge."""
        if not sample.text or sample.outcome in (Outcome.ERROR, Outcome.MISSING):
            return None, None
        try:
            body = judge.request(self.grader.answer(cell, sample))
        except TailraceError as error:
            return None, str(error)
        return requests.judge_row(id, body, fresh=self.folder.manifest.fresh), None

    # ------------------------------------------------------------------------------------------------------- answered

    def grade(self, work: Work, found: Iterator[tuple[str, dict[str, Any]]]) -> list[Sample]:
        """Score the answers among lines of an arm that have no score yet; all of the arm's samples. It blocks."""
        mine, cells = self._samples[work.name], self.cells[work.name]
        with self._grading:  # a look may go on in its thread when its batch has ended
            fresh = {
                id: line
                for id, line in found
                if id in cells and (id not in mine or mine[id].outcome in (Outcome.ERROR, Outcome.MISSING))
            }
            graded = self.grader.samples((cells[id], line) for id, line in fresh.items())
            mine.update(zip(fresh, graded, strict=True))
            return list(mine.values())

    def samples(self) -> dict[str, tuple[Cell, Sample]]:
        """Every cell of the run by arm and custom_id, with what the folder has of it."""
        found: dict[str, tuple[Cell, Sample]] = {}
        for work in self.works:
            kept = ((id, line) for id, asked, line in work.lines.read() if asked == work.asked.get(id))
            self.grade(work, kept)
            mine = self._samples[work.name]
            for id, cell in self.cells[work.name].items():
                sample = mine.get(id)
                if sample is None:
                    sample = outcomes.sample_of(*cell, None, is_refusal)
                found[f"{work.name}/{id}"] = (cell, sample)
        return found

    def conclude(
        self, stopped: str | None = None, failures: Sequence[str] = (), *, again: bool = False
    ) -> Figures:
        """Score all that is there and write results and report; the manifest says how the run ended. ``again``: it
        ended before, as it says there."""
        samples = self.samples()
        uses, unjudged = self._judge(samples)
        manifest = self.folder.manifest
        if not again:
            everything = [sample for _, sample in samples.values()]
            ended = _status(everything, unjudged, self.suite.max_error_rate, stopped, failures)
            manifest.status, manifest.reason = ended
            manifest.ended = time.time()
        return outputs.write(
            self.folder, self.suite, self.asking, list(samples.values()), self.grader.labels, uses
        )

    def _judge(self, samples: dict[str, tuple[Cell, Sample]]) -> tuple[dict[str, JudgeWork], int]:
        """Put what judges said into the samples; and how often one has still to be asked."""
        uses: dict[str, JudgeWork] = {}
        unjudged = 0
        for label, judge in self.grader.judges.items():
            kept = Lines(self.folder.judged(requests.file_name(label)))
            said = {id: (asked, line) for id, asked, line in kept.read()}
            records: list[Record] = []
            failed = 0
            for id, (cell, sample) in samples.items():
                row, wrong = self._judge_row(judge, id, cell, sample)
                if row is None and wrong is None:
                    continue
                score = Score(None, error=wrong or "not judged yet")
                asked, line = said.get(id, (None, None))
                if row is not None and line is not None and asked == requests.digest(row):
                    score = judged(judge, line)
                    records.append(outcomes.record_of(line))
                    failed += score.value is None
                elif row is not None:
                    unjudged += 1
                samples[id] = (cell, with_score(sample, label, score))
            uses[label] = (judge.model, records, failed)
        return uses, unjudged


class _Watcher:
    """Between the batches and whoever shows a run: grades what is answered by now."""

    def __init__(self, run: Run, observer: Observer) -> None:
        self._run = run
        self._observer = observer
        self._one = asyncio.Lock()

    def batch(self, work: Work, now: dict[str, Any]) -> None:
        self._observer.batch(work, now)

    def told(self, line: str) -> None:
        self._observer.told(line)

    async def collected(self, work: Work) -> None:
        await self._grade(work, ((id, line) for id, _, line in work.lines.read()))
        self._observer.ended(work)

    async def looked(self, work: Work, file: BinaryIO) -> None:
        await self._grade(work, ((id, lines.decode(line)) for id, line in lines.results(file)))

    async def _grade(self, work: Work, found: Iterator[tuple[str, dict[str, Any]]]) -> None:
        if work.name not in self._run.cells:
            return  # a judge's
        async with self._one:
            samples = await asyncio.to_thread(self._run.grade, work, found)
        self._observer.scores(work, _means(samples))


def _means(samples: list[Sample]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for sample in samples:
        for name, score in sample.scores.items():
            if score.value is not None:
                values.setdefault(name, []).append(score.value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def _taken(line: bytes, id: str, run: str) -> bytes:
    """A line of another run, as the line of a row of this one."""
    decoded = lines.decode(line)
    decoded["custom_id"] = id
    decoded.setdefault("run", run)
    return encode(decoded)


def _status(
    samples: list[Sample],
    unjudged: int,
    max_error_rate: float,
    stopped: str | None,
    failures: Sequence[str],
) -> tuple[Status, str | None]:
    errors = sum(sample.outcome is Outcome.ERROR for sample in samples)
    missing = sum(sample.outcome is Outcome.MISSING for sample in samples)
    if stopped is not None and (missing or unjudged):
        left = [f"{missing:,} of {len(samples):,} samples were not asked"] if missing else []
        left += [f"{unjudged:,} answers were not judged"] if unjudged else []
        return "stopped", f"{stopped}; {', '.join(left)}"
    if failures:
        return "failed", "; ".join(failures)
    if errors > max_error_rate * len(samples):
        return (
            "failed",
            f"{errors:,} of {len(samples):,} samples have no answer, more than max_error_rate allows",
        )
    if missing:
        return "stopped", f"{missing:,} of {len(samples):,} samples have no answer yet"
    return "completed", None


async def _together(works: list[Any], most: int) -> None:
    """All at once, ``most`` at the most. The first error is raised when all have ended or been cancelled."""
    room = asyncio.Semaphore(most)

    async def one(work: Any) -> None:
        async with room:
            await work

    tasks = [asyncio.create_task(one(work)) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        for work in works:
            work.close()  # of those that never had room
