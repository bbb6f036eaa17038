"""The task of a batch that came in: its file becomes its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from producers.validation import Validation
from stores.batches import Batches
from stores.storage import open_storage

if TYPE_CHECKING:
    from workers.runtime import Runtime


def validate(runtime: Runtime, batch_id: str, token: str) -> str:
    """What became of it, in a thread of the pool."""
    validation = Validation(
        Batches(runtime.engine),
        open_storage(runtime.settings),
        runtime.settings,
        resolve=runtime.resolve,
        clock=runtime.now_ms,
        stopping=lambda: runtime.stopping,
    )
    return validation.run(batch_id, token)
