"""What every scorer is, and the text that it looks at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, cast

from tailrace.evaluation.shapes import Answer, Score

#: A shorter prompt at the beginning of an answer says nothing: ``Paris`` may be asked and answered. In characters.
SHORTEST_PROMPT = 20


class Scorer(Protocol):
    """``score`` gives one Score for each answer, in order. What fails for one answer is that one's ``error``. ``stop``
    is for another thread: a ``score`` that waits for something gives that up, and raises."""

    label: str

    def score(self, answers: Sequence[Answer]) -> list[Score]: ...

    def close(self) -> None: ...

    def stop(self) -> None: ...


class _InProcess:
    """What has nothing to end."""

    def close(self) -> None:
        """Nothing is held."""

    def stop(self) -> None:
        """Nothing is waited for."""


class Each(_InProcess, ABC):
    """A scorer that looks at one answer at a time, in this process."""

    def __init__(self, label: str) -> None:
        self.label = label

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        return [self._safely(answer) for answer in answers]

    @abstractmethod
    def one(self, answer: Answer) -> Score:
        """The score of one answer; what it raises becomes the ``error`` of that one."""

    def _safely(self, answer: Answer) -> Score:
        try:
            return self.one(answer)
        except Exception as error:  # noqa: BLE001 - one answer must not cost the others theirs
            return Score(None, error=f"{type(error).__name__}: {error}")


def said(answer: Answer) -> str:
    """An answer's text, without the prompt where it begins with it and goes on."""
    text = answer.text.strip()
    asked = prompt(answer).strip()
    if len(asked) >= SHORTEST_PROMPT and text.startswith(asked) and (rest := text[len(asked) :].strip()):
        return rest
    return text


def prompt(answer: Answer) -> str:
    """The text of the last message of a user; empty where there is none."""
    for message in reversed(answer.messages):
        if message.get("role") == "user":
            return _text(message.get("content"))
    return ""


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = cast("list[Any]", content) if isinstance(content, list) else []
    texts = [cast("dict[str, Any]", part).get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def shortened(text: str, length: int = 80) -> str:
    """A text as an explanation quotes it."""
    text = " ".join(text.split())
    return repr(text if len(text) <= length else text[: length - 1] + "…")
