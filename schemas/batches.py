"""What batches and their rows are called, and the shapes that more than one room needs."""

from __future__ import annotations

from enum import StrEnum

import msgspec

#: Rows of a slice.
SLICE_ROWS = 100
#: How long whoever was dealt a job of a batch, or a slice, is believed to be at it unless it is heard of, in
#: milliseconds.
JOB_LEASE_MS = 15_000
#: Celery's tasks for a batch; each has one argument, a ``Job``.
VALIDATE, SLICE, FINALIZE = "tailrace.validate", "tailrace.slice", "tailrace.finalize"


class BatchStatus(StrEnum):
    """As OpenAI has them."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class SliceState(StrEnum):
    READY = "ready"
    DEALT = "dealt"
    DONE = "done"


class Stopped(StrEnum):
    """Why a batch ends before its last row was asked."""

    CANCELLED = "cancelled"
    EXPIRED = "expired"
    ERRORS = "errors"


class RowError(StrEnum):
    """Codes of rows that have no answer."""

    EXPIRED = "batch_expired"
    CANCELLED = "batch_cancelled"
    TIMEOUT = "request_timeout"
    STOPPED = "batch_stopped"
    DELETED = "answer_deleted"


#: What a batch may ask for, under either of our paths.
ENDPOINTS = ("/v1/chat/completions", "/api/v1/llm/chat/completions")
#: Rows under way at once, where ``max_concurrency`` is not sent, and the most of it.
DEFAULT_CONCURRENCY, MAX_CONCURRENCY = 1000, 100_000
#: The part of failed rows that stops a batch, where ``max_error_rate`` is not sent.
DEFAULT_ERROR_RATE = 0.5
#: The longest ``completion_window``, in hours.
MAX_WINDOW_HOURS = 365 * 24
#: Characters of a ``custom_id``.
MAX_CUSTOM_ID = 512
#: Bad lines that a batch's ``errors`` tell of.
MAX_ERRORS = 1000


class Row(msgspec.Struct, frozen=True):
    """A row of a batch, as its table has it, but for the batch."""

    n: int
    line: int
    custom_id: str
    completion_id: str
    fingerprint: str
    end_user: str | None
    sample: int | None
    cache_control: str | None
    body: bytes


class SliceRange(msgspec.Struct, frozen=True):
    """Rows ``first`` up to but not including ``beyond``, and their providers with commas."""

    first: int
    beyond: int
    provider: str
