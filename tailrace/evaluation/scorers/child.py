"""What runs in a child process: a user's function, or a search for a user's pattern. ``children`` starts it.

Run as a script, with the standard library alone, so that a user's modules come before all else. One JSON line in, one
out, over pipes that are moved away from stdin and stdout first: what a function prints goes to stderr. Ends, with all
of its process group, when its stdin is closed: then whoever asked is gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import inspect
import json
import os
import queue
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, cast

#: Seconds from the end of stdin to the end of the group, for functions that register exit handlers.
LEAVING = 1.0
#: Seconds beyond a call's time after which a child whose parent did not end it ends itself, even in C code.
GRACE = 2.0

Handler = Callable[[dict[str, Any]], dict[str, Any]]


class _Told(Exception):
    """What the parent is told as it stands."""


def searching() -> Handler:
    """``{"pattern", "ignore_case", "text"}`` → whether the pattern is found, and what its first group matched last."""

    def search(request: dict[str, Any]) -> dict[str, Any]:
        pattern: re.Pattern[str] = re.compile(
            request["pattern"], re.IGNORECASE if request["ignore_case"] else 0
        )
        if not pattern.groups:
            found = pattern.search(request["text"])
            return {"found": found is not None, "answer": found[0] if found else None}
        answers = [found[1] for found in pattern.finditer(request["text"]) if found[1] is not None]
        return {"found": bool(answers), "answer": answers[-1] if answers else None}

    return search


def calling(name: str, *folders: str) -> Handler:
    """``{"answer", "target", "item"}`` → what ``module:function`` makes of them; its module is imported here."""
    sys.path[:0] = list(dict.fromkeys(folders))
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute, None)
    if function is None:
        raise _Told(f"module {module!r} has no {attribute!r}")
    if not callable(function):
        raise _Told(f"{attribute!r} is no function")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise _Told(f"{attribute!r} must be a plain function, neither async nor a generator")
    try:
        inspect.signature(function).bind("", None, {})
    except TypeError as error:
        raise _Told(f"{attribute!r} can't be called as {attribute}(answer, target, item): {error}") from None
    except ValueError:
        pass  # of a builtin, that says nothing of what it takes

    def call(request: dict[str, Any]) -> dict[str, Any]:
        return _result(function(request["answer"], request["target"], request["item"]))

    return call


def _result(returned: Any) -> dict[str, Any]:
    """``{"value", "answer", "explanation"}`` out of what a function returned. Raises _Told."""
    if not isinstance(returned, dict):
        return {"value": _value(returned)}
    given = cast("dict[Any, Any]", returned)
    extra = [repr(key) for key in given if key not in ("value", "answer", "explanation")]
    if extra or "value" not in given:
        raise _Told(
            "returned a dict "
            + (f"with {', '.join(extra)}" if extra else "without 'value'")
            + "; it has 'value', and may have 'answer' and 'explanation'"
        )
    texts = {key: given.get(key) for key in ("answer", "explanation")}
    told = {key: text if text is None or isinstance(text, str) else str(text) for key, text in texts.items()}
    return {"value": _value(given["value"]), **told}


def _value(returned: Any) -> float:
    if not isinstance(returned, bool | int | float) and type(returned).__module__ == "numpy":
        with contextlib.suppress(Exception):
            returned = returned.item()
    if not isinstance(returned, bool | int | float):
        raise _Told(
            f"returned {_brief(returned)}; it must be a bool, a number from 0 to 1, or a dict with 'value'"
        )
    if not 0 <= returned <= 1:
        raise _Told(f"returned {_brief(returned)}, which is not from 0 to 1")
    return float(returned)


def _brief(thing: object) -> str:
    try:
        text = repr(thing)
    except Exception:  # noqa: BLE001 - a user's own __repr__
        text = f"a {type(thing).__name__}"
    return text if len(text) <= 80 else text[:79] + "…"


def _error(error: BaseException) -> str:
    """One line: what was raised and, where a user's file raised it, where."""
    if isinstance(error, _Told):
        return str(error)
    text = " ".join(f"{type(error).__name__}: {error}".rstrip(": ").split())
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if f.filename != __file__ and "importlib" not in f.filename
    ]
    return f"{text} ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else text  # noqa: PTH119


def _end_group() -> None:
    """Ends whatever the function started, and this process."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _read(requests: int, lines: queue.SimpleQueue[bytes | None]) -> None:
    with os.fdopen(requests, "rb") as file:
        for line in file:
            lines.put(line)
    lines.put(None)
    time.sleep(LEAVING)
    _end_group()


def _moved() -> tuple[int, int]:
    """Descriptors of what were stdin and stdout; stdin is empty from here on, and stdout is stderr."""
    requests, answers = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDWR)
    os.dup2(empty, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # a parent without stderr
        os.dup2(empty, 1)
        os.dup2(empty, 2)
    os.close(empty)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    return requests, answers


def main(mode: str, *arguments: str) -> None:
    requests, answers = _moved()
    own = os.getpid()
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests, lines), daemon=True).start()

    def tell(answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode() + b"\n"
        while data:
            data = data[os.write(answers, data) :]

    try:
        handler = calling(*arguments) if mode == "function" else searching()
    except BaseException as error:  # noqa: BLE001 - whatever an import does is the user's to know
        if os.getpid() == own:
            tell({"id": 0, "error": _error(error)})
        os._exit(1)
    tell({"id": 0})
    for line in iter(lines.get, None):
        request = json.loads(line)
        faulthandler.dump_traceback_later(request["timeout"] + GRACE, exit=True, file=2)
        try:
            answer = handler(request)
        except BaseException as error:  # noqa: BLE001 - SystemExit too: the next answer wants to be scored
            answer = {"error": _error(error)}
        if os.getpid() != own:
            os._exit(0)  # a function forked, and its child came back here
        faulthandler.cancel_dump_traceback_later()
        tell({"id": request["id"], **answer})


if __name__ == "__main__":
    main(*sys.argv[1:])
