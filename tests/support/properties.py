"""How many examples a property gets: a moderate number, and many with ``--hypothesis-profile=thorough``."""

from __future__ import annotations

from hypothesis import settings


def examples(number: int, *, steps: int = 50) -> settings:
    """``number`` examples in the normal profile, proportionally more in another; ``steps`` are a state machine's."""
    scale = settings().max_examples / 100
    return settings(max_examples=max(1, round(number * scale)), stateful_step_count=steps)
