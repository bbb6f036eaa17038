"""The figures of a run: what ``summary.json`` holds, and reports show. Values alone; ``summarise`` makes them."""

from __future__ import annotations

import msgspec


class Estimate(msgspec.Struct, frozen=True):
    """A mean with its 95% interval, clustered by item where items have several samples. ``method`` names how the
    interval was made; ``low`` and ``high`` are None where there is too little to say."""

    mean: float
    low: float | None
    high: float | None
    items: int
    samples: int
    method: str


class Spread(msgspec.Struct, frozen=True):
    """Percentiles of times in milliseconds, of answers that a provider gave for this run (``count``), not the cache."""

    count: int
    p50: float
    p90: float
    p99: float


class ScorerFigures(msgspec.Struct, frozen=True):
    """How an arm fared under one scorer. ``score`` is over samples with an answer and a score; ``verdicts`` counts all
    of them, by the names of ``Verdict``. ``pass_at``: k → the chance that one of k samples is right. ``unscored``: why
    the scorer failed on one of the samples that it failed on."""

    score: Estimate | None
    verdicts: dict[str, int]
    pass_at: dict[int, Estimate]
    categories: dict[str, Estimate]
    unscored: str | None = None


class ArmFigures(msgspec.Struct, frozen=True):
    """``cost_nano`` is what this run paid, ``answer_cost_nano`` what its answers cost whoever paid; both add up what
    is known, and ``unpriced`` counts answers of which nobody knows. ``tokens_per_second``: completion tokens of one
    stream, the median. ``outcomes`` by the names of ``Outcome``, ``cache`` by hit, join, miss, bypass. ``errors``: code
    → count, ``messages``: code → what one of these said."""

    key: str
    model: str
    prompt: str
    samples: int
    outcomes: dict[str, int]
    scorers: dict[str, ScorerFigures]
    cache: dict[str, int]
    errors: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost_nano: int
    answer_cost_nano: int
    unpriced: int
    duration: Spread | None
    first_chunk: Spread | None
    tokens_per_second: float | None
    messages: dict[str, str] = {}


class PairFigures(msgspec.Struct, frozen=True):
    """Two arms (or two runs) on the items that both have scores for: the mean of ``b - a``, with its interval.

    ``wins``: items on which b is better. ``p_adjusted``: Holm's, over all pairs of the same scorer. ``test`` names how
    ``p_value`` was made; None where there is too little to say."""

    a: str
    b: str
    scorer: str
    difference: Estimate
    p_value: float | None
    p_adjusted: float | None
    test: str
    wins: int
    losses: int
    ties: int


class JudgeFigures(msgspec.Struct, frozen=True):
    """What a judge took."""

    scorer: str
    model: str
    graded: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    cost_nano: int
    unpriced: int


class Figures(msgspec.Struct, frozen=True):
    """All of a run. ``spent_nano`` is what its batches have cost, also tries that left no sample: of rows that were
    cancelled under way, or failed and were asked again. None where it was not known when the figures were made."""

    arms: list[ArmFigures]
    pairs: list[PairFigures]
    judges: list[JudgeFigures]
    items: int
    samples: int
    seconds: float | None = None
    spent_nano: int | None = None


class RunInfo(msgspec.Struct, frozen=True):
    """What a report says of the run itself. ``status`` is one of completed, stopped, failed, running; ``reason`` says
    why it is not completed. ``created`` is seconds since the epoch."""

    id: str
    suite: str
    description: str
    tags: list[str]
    created: float
    status: str
    reason: str | None
    scorers: list[str]
    models: dict[str, str]  # an arm's key → the model as asked
    dataset: str
    items: int
    samples: int
    version: str
    server: str
