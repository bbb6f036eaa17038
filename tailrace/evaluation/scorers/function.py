"""The scorer ``function``: a user's own, in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tailrace.errors import TailraceError
from tailrace.evaluation import suite
from tailrace.evaluation.scorers.children import Child, Died, Hung, Stopped
from tailrace.evaluation.shapes import Answer, Score

#: Seconds that importing a user's module may take.
IMPORTING = 120.0


class Function:
    """Modules are looked for in ``folder``, then in the current one, then where Python looks. Raises TailraceError
    where the function can't be imported."""

    def __init__(self, spec: suite.Function, folder: Path) -> None:
        self.label = spec.label
        self._timeout = spec.timeout
        self._child = Child(
            "function",
            spec.function,
            str(folder.resolve()),
            str(Path.cwd()),
            flags=("-P",),
            starting=IMPORTING,
        )
        try:
            self._child.start()
        except (Hung, Died) as error:
            what = f"importing it {error}" if isinstance(error, Hung) else str(error)
            raise TailraceError(f"{spec.label}: function: {spec.function} can't be used: {what}") from None

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        return [self._one(answer) for answer in answers]

    def close(self) -> None:
        self._child.close()

    def stop(self) -> None:
        self._child.stop()

    def _one(self, answer: Answer) -> Score:
        targets = answer.item.targets
        request = {
            "answer": answer.text,
            "target": list(targets) if len(targets) > 1 else (targets[0] if targets else None),
            "item": answer.item.columns,
        }
        try:
            found = self._child.ask(request, self._timeout)
        except Hung as error:
            return Score(None, error=f"the function {error}")
        except Died as error:
            return Score(None, error=f"the function: {error}")
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001 - a column that is no JSON, say
            return Score(None, error=f"{type(error).__name__}: {error}")
        if "error" in found:
            return Score(None, error=found["error"])
        return Score(found["value"], answer=found.get("answer"), explanation=found.get("explanation"))
