"""NumPy and SciPy, loaded when figures are first asked for: loading them takes a second, and neither `import tailrace`
nor `tailrace --help` may need them."""

from __future__ import annotations

import importlib
from typing import Any

from tailrace.errors import TailraceError


def numpy() -> Any:
    """The module ``numpy``. Raises TailraceError where it isn't installed."""
    return _module("numpy")


def stats() -> Any:
    """The module ``scipy.stats``, which has no types. Raises TailraceError where it isn't installed."""
    return _module("scipy.stats")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise TailraceError(
            "statistics take the packages numpy and scipy: pip install 'tailrace[eval]'"
        ) from None
