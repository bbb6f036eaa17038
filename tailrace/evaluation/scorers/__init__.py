"""Scorers: what an answer is worth, from 0 to 1. ``docs/scorers.md`` says how each of them judges.

Judges are not made here: a run asks their model itself, with ``judge.Judge`` saying what and reading what comes back.
"""

from __future__ import annotations

from tailrace.evaluation.scorers.base import Scorer
from tailrace.evaluation.scorers.making import check_items, make, needs_target

__all__ = ["Scorer", "check_items", "make", "needs_target"]
