"""A question on its way: followed to its end, with the times that its reader saw."""

from __future__ import annotations

import time
from typing import Any

import tailrace
from tailrace.demo.questions import Question


class Answer:
    """``first_chunk_ms`` (the first text) and ``duration_ms`` count from the submission, on the reader's clock."""

    def __init__(self, question: Question, completion: tailrace.Completion) -> None:
        self.question = question
        self.completion = completion
        self.status = "queued"
        self.error: str | None = None
        self.body: dict[str, Any] = {}
        self.first_chunk_ms: float | None = None
        self.duration_ms: float | None = None
        self._submitted = time.monotonic()

    @classmethod
    async def submit(cls, client: tailrace.Client, question: Question) -> Answer:
        return cls(question, await client.submit(**question.body))

    async def follow(self) -> None:
        """Read to the end; how it went is in ``status``. Raises what is not about this completion."""
        try:
            async for chunk in self.completion.chunks():
                if chunk.text and self.first_chunk_ms is None:
                    self.first_chunk_ms = self._elapsed()
            self.duration_ms = self._elapsed()
            self.body = await self.completion.result()
            self.status = self.body["status"]
        except tailrace.CompletionError as error:
            self.status, self.error = "failed", str(error)

    def _elapsed(self) -> float:
        return (time.monotonic() - self._submitted) * 1000

    def tokens(self, kind: str) -> int:
        """``prompt`` or ``completion`` tokens."""
        usage: dict[str, Any] = self.body.get("usage") or {}
        return int(usage.get(f"{kind}_tokens") or 0)

    def row(self) -> dict[str, Any]:
        """What the results file says."""
        return {
            "custom_id": self.question.custom_id,
            "id": self.completion.id,
            "status": self.status,
            "first_chunk_ms": round(self.first_chunk_ms, 1) if self.first_chunk_ms is not None else None,
            "duration_ms": round(self.duration_ms, 1) if self.duration_ms is not None else None,
            "response": self.body or None,
            "error": self.error,
        }
