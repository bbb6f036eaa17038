"""How one arm of a run fared: its samples, counted and added up."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from tailrace.evaluation import estimates
from tailrace.evaluation.figures import ArmFigures, Estimate, ScorerFigures, Spread
from tailrace.evaluation.numerics import numpy
from tailrace.evaluation.shapes import Outcome, Sample, Verdict

#: The k of pass@k, as far as items have so many samples; beside these, all of them.
PASS_AT = (1, 2, 5, 10)
#: Outcomes with an answer, be it cut off or a refusal.
WITH_ANSWER = frozenset({Outcome.ANSWERED, Outcome.TRUNCATED, Outcome.REFUSED})
#: How an answer came about, as records name it.
CACHE = ("hit", "join", "miss", "bypass")
#: Of these, the ones that a provider was asked for: their times say something of the model.
ASKED = frozenset({"miss", "bypass"})


def scores(samples: Sequence[Sample], scorer: str) -> dict[str, list[float]]:
    """Item → the scores of its samples. Samples without an answer, or that the scorer failed on, have none; refused and
    truncated answers have the score that they earned, which is 0 as a rule."""
    by_item: defaultdict[str, list[float]] = defaultdict(list)
    for sample in samples:
        score = sample.scores.get(scorer)
        if sample.outcome in WITH_ANSWER and score is not None and score.value is not None:
            by_item[sample.item].append(score.value)
    return dict(by_item)


def arm_figures(key: str, samples: Sequence[Sample], scorers: Sequence[str]) -> ArmFigures:
    """All of one arm. ``samples`` are those of the arm, at least one."""
    records = [sample.record for sample in samples]
    answered = [sample for sample in samples if sample.outcome in WITH_ANSWER]
    asked = [sample.record for sample in answered if sample.record.cache in ASKED]
    return ArmFigures(
        key=key,
        model=samples[0].model,
        prompt=samples[0].prompt,
        samples=len(samples),
        outcomes=_counts(
            (outcome.value for outcome in Outcome), (sample.outcome.value for sample in samples)
        ),
        scorers={scorer: _scorer_figures(samples, scorer) for scorer in scorers},
        cache=_counts(CACHE, (sample.record.cache for sample in answered)),
        errors=dict(
            Counter(
                sample.error.code if sample.error else "unknown"
                for sample in samples
                if sample.outcome is Outcome.ERROR
            ).most_common()
        ),
        messages={
            sample.error.code: sample.error.message
            for sample in reversed(samples)  # the first of each code is the one that stays
            if sample.outcome is Outcome.ERROR and sample.error is not None
        },
        prompt_tokens=sum(record.prompt_tokens for record in records),
        completion_tokens=sum(record.completion_tokens for record in records),
        reasoning_tokens=sum(record.reasoning_tokens for record in records),
        cost_nano=sum(record.cost_nano or 0 for record in records),
        answer_cost_nano=sum(record.answer_cost_nano or 0 for record in records),
        unpriced=sum(sample.record.answer_cost_nano is None for sample in answered),
        duration=_spread([record.duration_ms for record in asked if record.duration_ms is not None]),
        first_chunk=_spread([record.first_chunk_ms for record in asked if record.first_chunk_ms is not None]),
        tokens_per_second=_median(
            [
                record.completion_tokens * 1000 / (record.duration_ms - record.first_chunk_ms)
                for record in asked
                if record.duration_ms is not None
                and record.first_chunk_ms is not None
                and record.duration_ms > record.first_chunk_ms
                and record.completion_tokens > 1
            ]
        ),
    )


def _scorer_figures(samples: Sequence[Sample], scorer: str) -> ScorerFigures:
    by_item = scores(samples, scorer)
    return ScorerFigures(
        score=estimates.mean(list(by_item.values())),
        verdicts=_counts(
            (verdict.value for verdict in Verdict), (sample.verdict(scorer).value for sample in samples)
        ),
        pass_at=_pass_at(by_item),
        categories=_categories(samples, by_item),
        unscored=next(
            (
                score.error
                for sample in samples
                if sample.verdict(scorer) is Verdict.UNSCORED
                and (score := sample.scores.get(scorer)) is not None
                and score.error
            ),
            None,
        ),
    )


def _pass_at(by_item: Mapping[str, Sequence[float]]) -> dict[int, Estimate]:
    counts = [(len(values), sum(value >= 1 for value in values)) for values in by_item.values()]
    most = max((samples for samples, _ in counts), default=0)
    if most < 2:
        return {}
    found = {k: estimates.pass_at_k(counts, k) for k in sorted({*PASS_AT, most}) if k <= most}
    return {k: estimate for k, estimate in found.items() if estimate is not None}


def _categories(samples: Sequence[Sample], by_item: Mapping[str, Sequence[float]]) -> dict[str, Estimate]:
    category_of = {sample.item: sample.category for sample in samples if sample.category is not None}
    groups: defaultdict[str, list[Sequence[float]]] = defaultdict(list)
    for item, values in by_item.items():
        if item in category_of:
            groups[category_of[item]].append(values)
    found = {category: estimates.mean(groups[category]) for category in sorted(groups)}
    return {category: estimate for category, estimate in found.items() if estimate is not None}


def _counts(names: Iterable[str], seen: Iterable[str]) -> dict[str, int]:
    """All names, also those not seen, in their order."""
    return {**dict.fromkeys(names, 0), **Counter(seen)}


def _spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    p50, p90, p99 = numpy().percentile(values, (50, 90, 99)).tolist()
    return Spread(count=len(values), p50=p50, p90=p90, p99=p99)


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
