"""Which requests may be answered by work that was done for others, and which answers may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

#: Why a choice ends that is whole. `length`, `content_filter` and what nobody has heard of are no such reasons.
WHOLE = frozenset({"stop", "tool_calls", "function_call", "tool_use", "end_turn", "stop_sequence", "eos"})


class CachePolicy(msgspec.Struct, frozen=True):
    """``reads``: a result that is there may answer the request. ``writes``: its own answer may serve others. ``joins``:
    it may share a generation under way. ``max_age`` is the oldest result that will do, in seconds. ``only``: nothing
    else is asked for.
    """

    reads: bool = False
    writes: bool = False
    joins: bool = False
    max_age: int | None = None
    only: bool = False


#: Nothing of the cache.
BYPASS = CachePolicy()


def cache_policy(
    directives: Mapping[str, str],
    *,
    temperature: float | None,
    sample: int | None,
    store: bool,
) -> CachePolicy:
    """By the directives of ``Cache-Control``; without one of those that ask for the cache, what is deterministic
    (temperature 0, or a numbered sample) uses it.
    """
    only = "only-if-cached" in directives
    if not store or "no-store" in directives:
        return CachePolicy(only=only)
    max_age = int(directives["max-age"]) if "max-age" in directives else None
    asked = only or "no-cache" in directives or max_age is not None
    if not asked and sample is None and temperature != 0:
        return BYPASS
    if "no-cache" in directives or max_age == 0:
        return CachePolicy(writes=not only, joins=not only, only=only)
    return CachePolicy(reads=True, writes=not only, joins=not only, max_age=max_age, only=only)


def whole_choices(finish_reasons: Sequence[str]) -> int:
    """How many choices an answer has, if each of them is whole; else 0."""
    return len(finish_reasons) if all(reason in WHOLE for reason in finish_reasons) else 0
