"""The figures of a run, out of its samples. ``docs/statistics.md`` says what counts where."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from tailrace.evaluation.figures import Figures, JudgeFigures, PairFigures
from tailrace.evaluation.paired import Paired, compare, holm
from tailrace.evaluation.shapes import Record, Sample
from tailrace.evaluation.tallies import arm_figures, scores

#: What a judge took: its model, the records of its completions, and how many samples it gave no grade.
JudgeWork = tuple[str, Sequence[Record], int]


def summarise(
    samples: Iterable[Sample],
    scorers: Sequence[str],
    *,
    arms: Sequence[str] | None = None,
    judges: Mapping[str, JudgeWork] | None = None,
    seconds: float | None = None,
    spent_nano: int | None = None,
) -> Figures:
    """All figures of a run. ``arms`` says which arms and in which order, by default those of the samples as they come;
    an arm without samples has no figures. ``judges`` by scorer. ``seconds`` is how long the run took, ``spent_nano``
    what all of its batches cost."""
    by_arm: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_arm[sample.arm].append(sample)
    chosen = {key: by_arm[key] for key in (by_arm if arms is None else arms) if key in by_arm}
    everything = [sample for each in chosen.values() for sample in each]
    return Figures(
        arms=[arm_figures(key, each, scorers) for key, each in chosen.items()],
        pairs=[pair for scorer in scorers for pair in _pairs(chosen, scorer)],
        judges=[
            _judge_figures(scorer, work, sum(_has_score(sample, scorer) for sample in everything))
            for scorer, work in (judges or {}).items()
        ],
        items=len({sample.item for sample in everything}),
        samples=len(everything),
        seconds=seconds,
        spent_nano=spent_nano,
    )


def pair_figures(pairs: Iterable[tuple[str, str, Paired]], scorer: str) -> list[PairFigures]:
    """Comparisons (a, b, how they compare) under one scorer, with p-values adjusted for all of them together."""
    figures = [
        PairFigures(
            a=a,
            b=b,
            scorer=scorer,
            difference=paired.difference,
            p_value=paired.p_value,
            p_adjusted=None,
            test=paired.test,
            wins=paired.wins,
            losses=paired.losses,
            ties=paired.ties,
        )
        for a, b, paired in pairs
    ]
    adjusted = holm([each.p_value for each in figures])
    return [msgspec.structs.replace(each, p_adjusted=p) for each, p in zip(figures, adjusted, strict=True)]


def _pairs(arms: Mapping[str, Sequence[Sample]], scorer: str) -> list[PairFigures]:
    """Each arm against each one before it; arms without an item in common are left out."""
    by_arm = {key: scores(samples, scorer) for key, samples in arms.items()}
    compared = ((a, b, compare(by_arm[a], by_arm[b])) for a, b in itertools.combinations(by_arm, 2))
    return pair_figures([(a, b, paired) for a, b, paired in compared if paired is not None], scorer)


def _has_score(sample: Sample, scorer: str) -> bool:
    score = sample.scores.get(scorer)
    return score is not None and score.value is not None


def _judge_figures(scorer: str, work: JudgeWork, graded: int) -> JudgeFigures:
    """``unpriced`` counts the completions of which nobody knows what they cost."""
    model, records, failed = work
    return JudgeFigures(
        scorer=scorer,
        model=model,
        graded=graded,
        failed=failed,
        prompt_tokens=sum(record.prompt_tokens for record in records),
        completion_tokens=sum(record.completion_tokens for record in records),
        cost_nano=sum(record.cost_nano or 0 for record in records),
        unpriced=sum(record.cost_nano is None for record in records),
    )
