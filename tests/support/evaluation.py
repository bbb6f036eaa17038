"""A made-up run of any size: rows as a real one has them, with truncations, refusals, errors and cache hits.

Its figures are simple ones (normal intervals over item means), made here so that reports can be tested by themselves.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from tailrace.evaluation.figures import (
    ArmFigures,
    Estimate,
    Figures,
    JudgeFigures,
    PairFigures,
    RunInfo,
    ScorerFigures,
    Spread,
)
from tailrace.evaluation.results import Header, Row
from tailrace.evaluation.shapes import Failure, Item, Outcome, Record, Sample, Score, Verdict

SCORERS = ("numeric", "judge")
JUDGE = "acme:judge-large"
CATEGORIES = ("arithmetic", "knowledge", "word problems")
#: Name, chance to be right, nano-dollars of a completion token (None: nobody knows), milliseconds of a token.
MODELS: tuple[tuple[str, float, int | None, float], ...] = (
    ("acme:large-2", 0.86, 15_000, 21.0),
    ("acme:small-2", 0.71, 1_100, 7.0),
    ("local:tiny-135m", 0.38, None, 12.0),
    ("other:medium", 0.80, 4_000, 16.0),
    ("other:medium-fast", 0.78, 6_000, 5.0),
)
#: What would do harm on a page that takes texts for markup.
HOSTILE = (
    "<script>window.harmed = 1</script>",
    '"><img src=x onerror="window.harmed = 2">',
    "</script><script>window.harmed = 3</script>",
    "<!-- <script>",
    "]]>\u2028window.harmed = 4\u2029",
    "' onmouseover='window.harmed = 5",
    "{{ 7 * 7 }} {% raw %} &amp; \\u003c",
    "a\x00b\x1b[31m \ud800 half",
)

_FILLER = (
    "Let me work through this step by step, keeping track of each quantity on the way.",
    "First I restate what is given and what is asked.",
    "Multiplying the two numbers digit by digit and carrying as needed gives the partial sums.",
    "This agrees with a rough estimate, so the order of magnitude is plausible.",
    "Checking the result by the inverse operation confirms it.",
)
_PLACES = (
    ("France", "Paris"),
    ("Kenya", "Nairobi"),
    ("Peru", "Lima"),
    ("Japan", "Tokyo"),
    ("Norway", "Oslo"),
    ("Malta", "Valletta"),
)


@dataclasses.dataclass(frozen=True)
class Run:
    info: RunInfo
    figures: Figures
    rows: list[Row]

    @property
    def header(self) -> Header:
        return Header(self.info.id, self.info.suite, tuple(self.info.scorers))


def made_run(
    *, arms: int = 3, items: int = 120, samples: int = 2, seed: int = 0, hostile: bool = False, words: int = 1
) -> Run:
    """``hostile``: texts, names and columns have HOSTILE in them. ``words``: how long answers are."""
    dice = random.Random(seed)
    models = list(MODELS[:arms])
    if hostile:
        models = [(model[0] + HOSTILE[n], *model[1:]) for n, model in enumerate(models)]
    dataset = [_item(n, dice, hostile) for n in range(items)]
    rows = [
        _row(model, item, sample, dice, words, hostile)
        for item in dataset
        for model in models
        for sample in range(samples)
    ]
    spoilt = HOSTILE[0] if hostile else ""
    names = [str(model[0]) for model in models]
    info = RunInfo(
        id="20261128-141502-k3v9",
        suite=f"arithmetic-and-knowledge{spoilt}",
        description=f"Small questions with short answers, to choose a model for the help desk.{spoilt}",
        tags=["nightly", f"help-desk{spoilt}"],
        created=1_795_875_302.0,
        status="stopped",
        reason=f"the budget of $2.00 is spent{spoilt}",
        scorers=list(SCORERS),
        models={name: name for name in names},
        dataset=f"questions.jsonl{spoilt}",
        items=items,
        samples=len(rows),
        version="0.1.0",
        server="http://127.0.0.1:8000",
    )
    return Run(info, figures_of(rows, names), rows)


def _item(n: int, dice: random.Random, hostile: bool) -> Item:
    category = CATEGORIES[n % 3]
    if category == "arithmetic":
        a, b = dice.randint(12, 99), dice.randint(12, 99)
        question, target = f"What is {a} × {b}? End with the number alone.", str(a * b)
    elif category == "knowledge":
        place, target = _PLACES[n // 3 % len(_PLACES)]
        question = f"What is the capital of {place}? One word."
    else:
        a, b = dice.randint(3, 40), dice.randint(2, 9)
        question = f"A crate holds {a} bottles. {b} crates arrive and 2 bottles break. How many are whole?"
        target = str(a * b - 2)
    spoilt = HOSTILE[n % len(HOSTILE)] if hostile else ""
    if spoilt:
        category += spoilt if n % 3 == 0 and n < 3 else ""
    metadata = {"source": f"written for tests{spoilt}", "level": n % 5, **({spoilt: 1} if spoilt else {})}
    return Item(
        f"q-{n:04}{spoilt}",
        question + spoilt,
        (target, spoilt) if spoilt else (target,),
        metadata,
        {},
        category,
    )


def _row(model: Any, item: Item, n: int, dice: random.Random, words: int, hostile: bool) -> Row:
    name, skill, price, pace = model
    hard = {"arithmetic": -0.12, "knowledge": 0.08}.get(item.category or "", 0.0)
    right = dice.random() < min(0.98, skill + hard + (int(item.id[2:6]) % 7 - 3) * 0.03)
    fate = dice.random()
    outcome = Outcome.ANSWERED
    if fate < 0.012:
        outcome = Outcome.ERROR
    elif fate < 0.03:
        outcome = Outcome.REFUSED
    elif fate < 0.06:
        outcome = Outcome.TRUNCATED
    messages = [
        {"role": "system", "content": "You answer questions. Be brief, and end with the answer."},
        {"role": "user", "content": item.input},
    ]
    base: dict[str, Any] = {
        "arm": name,
        "model": name,
        "prompt": "default",
        "item": item.id,
        "sample": n,
        "category": item.category,
    }
    if outcome is Outcome.ERROR:
        error = Failure(
            *dice.choice([("timeout", "no answer within 60 s"), ("rate_limited", "the provider said 429")])
        )
        record = Record(attempts=3, queue_ms=dice.randint(1, 40), duration_ms=60_000, cost_nano=0)
        return Row(Sample(**base, outcome=outcome, error=error, record=record), item, messages)
    answer = item.targets[0] if right else str(dice.randint(2, 4000))
    lines = [dice.choice(_FILLER) for _ in range(dice.randint(0, 3) * words)]
    text = "\n\n".join([*lines, f"The answer is **{answer}**."])
    if outcome is Outcome.REFUSED:
        text, right = "I'm sorry, but I can't help with that.", False
    elif outcome is Outcome.TRUNCATED:
        text, right = text[: len(text) // 2 + 1], False
    if hostile:
        text += HOSTILE[dice.randrange(len(HOSTILE))]
    tokens = len(text) // 4 + 3
    hit = dice.random() < 0.1
    cost = None if price is None else tokens * price + 40 * price // 5
    record = Record(
        cache="hit" if hit else "miss",
        cost_nano=0 if hit else cost,
        answer_cost_nano=cost,
        prompt_tokens=38 + len(str(item.input)) // 4,
        completion_tokens=tokens,
        attempts=0 if hit else 1,
        queue_ms=dice.randint(0, 30),
        first_chunk_ms=None if hit else round(dice.lognormvariate(math.log(180), 0.3)),
        duration_ms=2 if hit else round(180 + tokens * pace * dice.uniform(0.8, 1.5)),
    )
    grade = 1.0 if right else dice.choice([0.0, 0.0, 0.5]) if outcome is Outcome.ANSWERED else 0.0
    failed = dice.random() < 0.01
    found = None if outcome is Outcome.REFUSED else answer
    scores = {
        "numeric": Score(
            1.0 if right else 0.0, found, None if right else f"{found} is not {item.targets[0]}"
        ),
        "judge": Score(None, error="no line of the form GRADE: x")
        if failed
        else Score(grade, explanation="The final answer is what counts, and it is given plainly.\nGRADE: C"),
    }
    finish = "length" if outcome is Outcome.TRUNCATED else "stop"
    return Row(
        Sample(
            **base,
            outcome=outcome,
            text=text,
            reasoning="The user wants one answer." if dice.random() < 0.2 else None,
            finish_reason=finish,
            completion_id=f"chatcmpl-{dice.getrandbits(96):024x}",
            record=record,
            scores=scores,
        ),
        item,
        messages,
    )


# ----------------------------------------------------------------------------------------------------- figures


def figures_of(rows: Sequence[Row], arms: Sequence[str]) -> Figures:
    by_arm: dict[str, list[Sample]] = {arm: [] for arm in arms}
    for row in rows:
        by_arm[row.sample.arm].append(row.sample)
    return Figures(
        arms=[_arm(arm, samples) for arm, samples in by_arm.items()],
        pairs=[_pair(a, b, scorer, by_arm) for scorer in SCORERS for a, b in combinations(arms, 2)],
        judges=[JudgeFigures("judge", JUDGE, len(rows) - 9, 9, 91_000, 11_800, 412_345_678, 0)],
        items=len({row.item.id for row in rows}),
        samples=len(rows),
        seconds=372.4,
    )


def _arm(key: str, samples: list[Sample]) -> ArmFigures:
    asked = [s for s in samples if s.record.cache == "miss" and s.error is None]
    return ArmFigures(
        key=key,
        model=key,
        prompt="default",
        samples=len(samples),
        outcomes=dict(Counter(s.outcome.value for s in samples)),
        scorers={scorer: _scorer(scorer, samples) for scorer in SCORERS},
        cache=dict(Counter(s.record.cache for s in samples)),
        errors=dict(Counter(s.error.code for s in samples if s.error)),
        prompt_tokens=sum(s.record.prompt_tokens for s in samples),
        completion_tokens=sum(s.record.completion_tokens for s in samples),
        reasoning_tokens=0,
        cost_nano=sum(s.record.cost_nano or 0 for s in samples),
        answer_cost_nano=sum(s.record.answer_cost_nano or 0 for s in samples),
        unpriced=sum(s.record.answer_cost_nano is None for s in samples if s.error is None),
        duration=_spread([s.record.duration_ms for s in asked if s.record.duration_ms]),
        first_chunk=_spread([s.record.first_chunk_ms for s in asked if s.record.first_chunk_ms]),
        tokens_per_second=statistics.median(
            1000 * s.record.completion_tokens / (s.record.duration_ms or 1) for s in asked
        )
        if asked
        else None,
    )


def _scorer(scorer: str, samples: list[Sample]) -> ScorerFigures:
    verdicts = Counter(s.verdict(scorer) for s in samples)
    categories: dict[str, list[Sample]] = defaultdict(list)
    for s in samples:
        categories[s.category or ""].append(s)
    first = _estimate(_by_item(scorer, (s for s in samples if s.sample == 0)))
    most = _estimate({item: [max(values)] for item, values in _by_item(scorer, samples).items()})
    return ScorerFigures(
        score=_estimate(_by_item(scorer, samples)),
        verdicts={verdict.value: verdicts[verdict] for verdict in Verdict},
        pass_at={k: e for k, e in ((1, first), (2, most)) if e is not None},
        categories={
            name: estimate
            for name, own in categories.items()
            if (estimate := _estimate(_by_item(scorer, own))) is not None
        },
    )


def _by_item(scorer: str, samples: Iterable[Sample]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for s in samples:
        score = s.scores.get(scorer)
        if score is not None and score.value is not None:
            found[s.item].append(score.value)
    return found


def _estimate(by_item: dict[str, list[float]]) -> Estimate | None:
    if not by_item:
        return None
    means = [statistics.fmean(values) for values in by_item.values()]
    mean, low, high = statistics.fmean(means), None, None
    if len(means) > 1:
        half = 1.96 * statistics.stdev(means) / math.sqrt(len(means))
        low, high = mean - half, mean + half
    return Estimate(mean, low, high, len(means), sum(map(len, by_item.values())), "normal, clustered by item")


def _pair(a: str, b: str, scorer: str, by_arm: dict[str, list[Sample]]) -> PairFigures:
    left, right = _by_item(scorer, by_arm[a]), _by_item(scorer, by_arm[b])
    gaps = {
        item: [statistics.fmean(right[item]) - statistics.fmean(left[item])]
        for item in left.keys() & right.keys()
    }
    estimate = _estimate(gaps) or Estimate(0.0, None, None, 0, 0, "none")
    p = None
    if estimate.high is not None and estimate.high > estimate.mean:
        p = math.erfc(abs(estimate.mean) / ((estimate.high - estimate.mean) / 1.96) / math.sqrt(2))
    values = [gap[0] for gap in gaps.values()]
    wins, losses = sum(v > 0 for v in values), sum(v < 0 for v in values)
    adjusted = None if p is None else min(1.0, 3 * p)
    return PairFigures(
        a, b, scorer, estimate, p, adjusted, "normal", wins, losses, len(values) - wins - losses
    )


def _spread(values: list[int]) -> Spread | None:
    if len(values) < 2:
        return None
    cuts = statistics.quantiles(values, n=100)
    return Spread(len(values), cuts[49], cuts[89], cuts[98])
