"""Jinja2 in a sandbox, for whatever users write templates for: one set of rules for all of them.

A template sees the values that it is given, and can't change them. What it doesn't see is an error, never an empty
text.

Limits: ``range`` gives 100,000 numbers at most, ``*`` and ``**`` make nothing longer than ``LONGEST`` characters or
digits, and a rendering ends after ``CPU_SECONDS``. The last one is kept by a signal, so only in the main thread.
"""

from __future__ import annotations

import difflib
import signal
import threading
import types
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: How long one rendering may compute, in seconds of the process's own time.
CPU_SECONDS = 10.0
#: Characters, elements or digits that ``*`` and ``**`` may make, and a rendering may have.
LONGEST = 10_000_000


class Invalid(Exception):
    """A text that is no template. ``line`` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line} of the template: {message}")
        self.line, self.message = line, message


class Failed(Exception):
    """A template that doesn't render with these values; ``str()`` says why."""


class TooLong(Exception):
    """A rendering that takes more than it may."""


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and _digits(left, right) > LONGEST:
            raise TooLong("makes a number that is too long")
        for many, times in ((left, right), (right, left)):
            if operator == "*" and isinstance(many, str | bytes | list | tuple) and isinstance(times, int):
                if len(cast("list[Any]", many)) * times > LONGEST:
                    raise TooLong("makes a text or list that is too long")
        return super().call_binop(context, operator, left, right)


def _digits(base: Any, exponent: Any) -> float:
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0:
        return base.bit_length() * exponent * 0.302
    return 0


_OTHER_TEMPLATES = (nodes.Include, nodes.Extends, nodes.Import, nodes.FromImport)


class Template:
    """A compiled template, with ``filters`` beside Jinja2's own or in their place. Raises Invalid where the text is
    none."""

    def __init__(
        self, text: str, filters: Mapping[str, Callable[..., Any]] = types.MappingProxyType({})
    ) -> None:
        environment = _Environment(undefined=jinja2.StrictUndefined)
        environment.filters.update(filters)
        try:
            parsed = environment.parse(text)
            other = next(parsed.find_all(_OTHER_TEMPLATES), None)
            if other is not None:
                raise Invalid(
                    other.lineno, f"{type(other).__name__.lower()} isn't possible: there is one template"
                )
            self._template = environment.from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise Invalid(error.lineno, error.message or "is not valid") from None
        except (RecursionError, MemoryError):
            raise Invalid(1, "is nested too deep") from None
        except (SyntaxError, TooLong, ValueError, OverflowError) as error:
            raise Invalid(1, f"can't be compiled: {error}") from None

    def render(self, values: Mapping[str, Any]) -> str:
        """Raises Failed."""
        try:
            with _limited():
                parts: list[str] = []
                length = 0
                for part in self._template.generate(values):
                    length += len(part)
                    if length > LONGEST:
                        raise TooLong(f"makes more than {LONGEST:,} characters")
                    parts.append(part)
                return "".join(parts)
        except jinja2.UndefinedError as error:
            raise Failed(f"{error}{_nearest(str(error), values)}; a template sees {listed(values)}") from None
        except Exception as error:  # noqa: BLE001 - a template may do whatever an expression can
            line = _line(error.__traceback__)
            told = " ".join(str(error).split()) or type(error).__name__
            raise Failed(f"{told} (line {line} of the template)" if line else told) from None


def listed(names: Collection[str], most: int = 20) -> str:
    """Names for a person: ``a, b, c``."""
    shown = ", ".join(list(names)[:most])
    return f"{shown}, … ({len(names)})" if len(names) > most else shown or "none"


def _nearest(message: str, values: Mapping[str, Any]) -> str:
    quoted = message.split("'")
    near = difflib.get_close_matches(quoted[1], list(values), 1) if len(quoted) > 2 else []
    return f" (did you mean {near[0]!r}?)" if near and near[0] != quoted[1] else ""


def _line(traceback: types.TracebackType | None) -> int | None:
    """The line of the template in which something failed."""
    found: int | None = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            found = traceback.tb_lineno
        traceback = traceback.tb_next
    return found


@contextmanager
def _limited() -> Generator[None]:
    """Ends what computes for more than ``CPU_SECONDS``, and leaves timer and handler as they were."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_number: int, _frame: object) -> None:
        raise TooLong(f"computes for more than {CPU_SECONDS:g} s")

    handler = signal.signal(signal.SIGVTALRM, ring)
    timer = signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, *timer)
        signal.signal(signal.SIGVTALRM, handler)
