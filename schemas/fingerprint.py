"""The fingerprint: SHA-256 of all that can change an answer, so that equal requests can share one.

Two requests have the same fingerprint exactly when ``answer_params`` makes equal JSON values of them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, cast

#: Part of every fingerprint. Raise it when a rule here changes: nothing cached under the old rule is found.
VERSION = 1

#: How a completion is delivered, kept or labelled; and ``model``, in whose place the resolved one counts.
NOT_IN_ANSWER = frozenset({"model", "stream", "stream_options", "user", "metadata", "store", "timeout"})

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def canonical_json(value: Any) -> bytes:
    """One spelling for equal JSON values: sorted keys, no whitespace, 1e2 and 100.0 as 100, -0.0 as 0.

    Raises ValueError for NaN and infinity, TypeError for what JSON has no shape for.
    """
    return _encode(_integral(value)).encode("utf-8", "surrogatepass")


def fingerprint(*, tenant: str, provider: str, model: str, params: dict[str, Any], sample: int | None) -> str:
    """64 hex digits. ``provider`` and ``model`` are the resolved ones, ``sample`` is that of ``x-sample``."""
    request = {
        "v": VERSION,
        "tenant": tenant,
        "provider": provider,
        "model": model,
        "sample": sample,
        "params": answer_params(params),
    }
    return hashlib.sha256(canonical_json(request)).hexdigest()


def answer_params(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters that can change the answer, each said in one way."""
    kept = {name: value for name, value in params.items() if value is not None and name not in NOT_IN_ANSWER}
    if "max_completion_tokens" in kept:
        kept["max_tokens"] = kept.pop("max_completion_tokens")
    if isinstance(kept.get("stop"), str):
        kept["stop"] = [kept["stop"]]
    if kept.get("n") == 1:
        del kept["n"]
    if not kept.get("tools"):
        kept.pop("parallel_tool_calls", None)
    return kept


def _integral(value: Any) -> Any:
    """``value`` with its integral floats made integers. Strings are most of what there is, and need no call."""
    if type(value) is float:
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        pairs = cast("dict[Any, Any]", value).items()
        return {key: item if type(item) is str else _integral(item) for key, item in pairs}
    if isinstance(value, list | tuple):
        return [item if type(item) is str else _integral(item) for item in cast("list[Any]", value)]
    return value
