"""What ``tailrace tail --record`` writes: a line for a provider of ``kind = "replay"``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, cast

import tailrace

#: Fields of a chunk that belong to the completion that was recorded.
_OWN = frozenset({"id", "created", "model", "resolved_model", "resolved_provider"})
#: What the stream puts beside OpenAI's ``logprobs.content``.
_FLAT = frozenset({"tokens", "token_logprobs", "top_logprobs", "text_offset"})


class Recording:
    """Chunks with the time at which they came, in milliseconds since this was made. Raises TailraceError where
    ``file`` can't be written."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._began = time.monotonic()
        self._chunks: list[tuple[int, dict[str, Any]]] = []
        self._append("")

    def add(self, chunk: tailrace.Chunk) -> None:
        self._chunks.append((round((time.monotonic() - self._began) * 1000), as_sent(chunk.data)))

    def clear(self) -> None:
        """What came so far is void."""
        self._chunks.clear()

    def write(self) -> None:
        """Add the line."""
        self._append(json.dumps({"chunks": self._chunks}, separators=(",", ":")) + "\n")

    def _append(self, text: str) -> None:
        try:
            with self._file.open("a", encoding="utf-8") as lines:
                lines.write(text)
        except OSError as error:
            raise tailrace.TailraceError(f"can't write {self._file}: {error.strerror}") from None


def as_sent(chunk: dict[str, Any]) -> dict[str, Any]:
    """A chunk as its provider sent it, without what was put in for its reader."""
    return {name: value for name, value in chunk.items() if name not in _OWN} | {
        "choices": [_choice(choice) for choice in chunk.get("choices", [])]
    }


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    choice = dict(choice)
    delta: dict[str, Any] = dict(choice.get("delta") or {})
    if "reasoning_content" in delta and delta.get("reasoning") == delta["reasoning_content"]:
        del delta["reasoning"]
    logprobs: Any = choice.get("logprobs")
    if isinstance(logprobs, dict) and "content" in logprobs:
        kept = cast("dict[str, Any]", logprobs)
        choice["logprobs"] = {name: value for name, value in kept.items() if name not in _FLAT}
    return choice | {"delta": delta}
