"""The scorer ``regex``. Patterns are searched for in a child process, since some take longer than anybody waits."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

from tailrace.errors import TailraceError
from tailrace.evaluation import suite
from tailrace.evaluation.scorers.base import said, shortened
from tailrace.evaluation.scorers.children import Child, Died, Hung, Stopped
from tailrace.evaluation.scorers.templates import Template, of_item
from tailrace.evaluation.scorers.text import same
from tailrace.evaluation.shapes import Answer, Item, Score

#: Seconds that one search may take.
SEARCH = 1.0
#: Searches that took too long, after which the rest are not tried.
PATIENCE = 10
#: Seconds that the child may take to start.
STARTING = 60.0


class Regex:
    """1 where the pattern is found; where it has a group and the item targets, what the group matched last is one."""

    def __init__(self, spec: suite.Regex) -> None:
        self.label = spec.label
        self._ignore_case = spec.ignore_case
        self._template = Template(spec.pattern, f"{spec.label}: pattern")
        self._pattern = None if any(mark in spec.pattern for mark in ("{{", "{%", "{#")) else spec.pattern
        if self._pattern is not None:
            self._check(self._pattern)
        self._child = Child("search", flags=("-I", "-S"), starting=STARTING)
        self._hung = 0

    def check(self, item: Item) -> None:
        """Raises TailraceError where the item's pattern is none."""
        if self._pattern is None:
            self._check(self._template.render(of_item(item)))

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        return [self._one(answer) for answer in answers]

    def close(self) -> None:
        self._child.close()

    def stop(self) -> None:
        self._child.stop()

    def _one(self, answer: Answer) -> Score:
        if self._hung >= PATIENCE:
            return Score(
                None, error=f"not tried: the pattern took more than {SEARCH:g} s for {PATIENCE} answers"
            )
        try:
            pattern = self._pattern or self._template.render(of_item(answer.item))
            self._check(pattern)
            found = self._child.ask(
                {"pattern": pattern, "ignore_case": self._ignore_case, "text": said(answer)}, SEARCH
            )
        except Hung as error:
            self._hung += 1
            return Score(None, error=f"the pattern {error}")
        except (Died, TailraceError) as error:
            return Score(None, error=str(error))
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001 - one answer must not cost the others theirs
            return Score(None, error=f"{type(error).__name__}: {error}")
        if "error" in found:
            return Score(None, error=found["error"])
        return self._judged(found["answer"], answer.item, grouped=re.compile(pattern).groups > 0)

    def _judged(self, found: str | None, item: Item, *, grouped: bool) -> Score:
        if found is None:
            return Score(0.0, explanation="the pattern is not found")
        if not grouped or not item.targets or any(same(found, target) for target in item.targets):
            return Score(1.0, answer=found)
        wanted = " or ".join(shortened(target) for target in item.targets)
        return Score(0.0, answer=found, explanation=f"{shortened(found)} is not {wanted}")

    def _check(self, pattern: str) -> None:
        try:
            with warnings.catch_warnings(action="ignore"):
                re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise TailraceError(
                f"{self.label}: pattern: {shortened(pattern)} is no regular expression: {error}"
            ) from None
