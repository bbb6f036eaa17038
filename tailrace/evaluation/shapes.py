"""What a run is made of: items, arms, what was answered, and how it was scored. Values alone, no I/O."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from tailrace.evaluation.suite import Model, Prompt


class Item(msgspec.Struct, frozen=True):
    """A row of the dataset. ``targets`` has several where any of them is right, none where there is no target.
    ``columns`` are all of the row, for templates; ``category`` is what reports are broken down by."""

    id: str
    input: Any
    targets: tuple[str, ...]
    metadata: dict[str, Any]
    columns: dict[str, Any]
    category: str | None = None


class Arm(msgspec.Struct, frozen=True):
    """What is compared: a model with its parameters, under one prompt."""

    key: str
    model: Model
    prompt: Prompt
    params: dict[str, Any]


class Outcome(enum.Enum):
    """What became of a request, before anybody asks whether it is right."""

    ANSWERED = "answered"
    TRUNCATED = "truncated"  # finish_reason "length"
    REFUSED = "refused"  # the provider's filter, the message's `refusal`, or a text that declines
    ERROR = "error"  # no answer: the row failed
    MISSING = "missing"  # not asked yet, or not ended


class Verdict(enum.Enum):
    """Where a sample is counted under one scorer: each in exactly one place."""

    RIGHT = "right"  # 1
    PARTLY = "partly"  # between
    WRONG = "wrong"  # 0, of an answer that is whole
    TRUNCATED = "truncated"  # 0, and the answer was cut off
    REFUSED = "refused"  # 0, and the model declined
    ERROR = "error"  # no answer
    UNSCORED = "unscored"  # an answer, and the scorer failed
    MISSING = "missing"


class Score(msgspec.Struct, frozen=True):
    """``value`` from 0 to 1, None where the scorer failed (``error`` says how). ``answer``: what was taken out of the
    text. ``explanation``: a judge's, or why it is wrong."""

    value: float | None
    answer: str | None = None
    explanation: str | None = None
    error: str | None = None


class Record(msgspec.Struct, frozen=True):
    """A completion's usage record, as the lines of a batch have it. Money in integer nano-dollars, None where nobody
    knows; ``answer_cost_nano`` is what the answer cost whoever paid for it: this completion, or the one that it shares
    the answer of. Times in milliseconds."""

    cache: str = "miss"
    cost_nano: int | None = None
    answer_cost_nano: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    attempts: int = 0
    queue_ms: int | None = None
    first_chunk_ms: int | None = None
    duration_ms: int | None = None


class Failure(msgspec.Struct, frozen=True):
    """Why a row has no answer."""

    code: str
    message: str


class Sample(msgspec.Struct, frozen=True):
    """One cell of a run: an item under an arm, asked for the ``sample``-th time (from 0). ``scores`` by scorer."""

    arm: str
    model: str
    prompt: str
    item: str
    sample: int
    category: str | None
    outcome: Outcome
    text: str | None = None
    reasoning: str | None = None
    finish_reason: str | None = None
    error: Failure | None = None
    completion_id: str | None = None
    record: Record = Record()
    scores: dict[str, Score] = {}

    def verdict(self, scorer: str) -> Verdict:
        """See ``Verdict``. A truncated or refused answer that is right all the same is right."""
        if self.outcome is Outcome.MISSING:
            return Verdict.MISSING
        if self.outcome is Outcome.ERROR:
            return Verdict.ERROR
        score = self.scores.get(scorer)
        if score is None or score.value is None:
            return Verdict.UNSCORED
        if score.value >= 1:
            return Verdict.RIGHT
        if score.value > 0:
            return Verdict.PARTLY
        if self.outcome is Outcome.REFUSED:
            return Verdict.REFUSED
        return Verdict.TRUNCATED if self.outcome is Outcome.TRUNCATED else Verdict.WRONG


class Answer(msgspec.Struct, frozen=True):
    """What a scorer is given: the item, what was asked and what came back."""

    item: Item
    text: str
    messages: list[dict[str, Any]]
