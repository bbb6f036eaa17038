"""pyarrow, which comes with extras and has no types."""

from __future__ import annotations

import importlib
from typing import Any

from tailrace.errors import TailraceError


def load_arrow(doing: str, extra: str) -> tuple[Any, Any]:
    """``pyarrow`` and ``pyarrow.parquet``. Raises TailraceError, which says what they are for, where they aren't
    there."""
    try:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise TailraceError(
            f"{doing} Parquet takes the package pyarrow: pip install 'tailrace[{extra}]'"
        ) from None
    arrow.set_memory_pool(arrow.system_memory_pool())  # its own keeps 40 MB more than what is in use
    return arrow, parquet
