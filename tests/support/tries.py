"""Answers of the fake backend that differ from one try at a request to the next, as real models' do. No I/O.

``varied`` is a deterministic model: the same text each time, cut into other chunks. ``sampled`` is one that samples:
other words each time, each with the number of the try, so that a mixture of two tries can be seen in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

_WORD = re.compile(r" t(\d+)\.(\d+)(?:'(\d+))?")


def mark(choice: int) -> str:
    """What tells the words of one choice from those of another."""
    return f"'{choice}" if choice else ""


def sampled_word(attempt: int, place: int, choice: int) -> str:
    return f" t{attempt}.{place}{mark(choice)}"


def read_sampled(text: str) -> list[tuple[int, int, int]]:
    """(attempt, place, choice) of each word. Raises ValueError for what is not made of such words."""
    words = [(int(a), int(p), int(c or 0)) for a, p, c in _WORD.findall(text)]
    if "".join(sampled_word(*word) for word in words) != text:
        raise ValueError(f"not the words of a sampled answer: {text[-200:]!r}")
    return words


def cut(text: str, pieces: int, random: Random) -> Iterator[str]:
    """About so many pieces, of random sizes; together they are the text."""
    longest = max(1, 2 * len(text) // max(1, pieces))
    at = 0
    while at < len(text):
        size = random.randint(1, longest)
        yield text[at : at + size]
        at += size


def interleaved(
    choices: Sequence[Sequence[dict[str, Any]]], random: Random
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(choice, delta), each choice's in its order and the choices in any."""
    turns = [choice for choice, deltas in enumerate(choices) for _ in deltas]
    random.shuffle(turns)
    left = [iter(deltas) for deltas in choices]
    for choice in turns:
        yield choice, next(left[choice])
