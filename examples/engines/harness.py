"""``lm-eval`` with one more model, ``tailrace``, whose repeats are samples of their own.

    python examples/engines/harness.py run --model tailrace --model_args model=smollm2 num_concurrent=16 …

``local-chat-completions`` sends the same seed with every repeat, and the same headers with every request. This model
numbers the repeats from 0: number k goes out with the seed k higher and with ``x-sample: k``, so that it is drawn anew,
and found again when the run is repeated. ``TAILRACE_URL`` and ``TAILRACE_API_KEY`` say where to.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from contextvars import ContextVar
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.openai_completions import LocalChatCompletion

#: The number of the repeat that is being sent. Concurrent requests are tasks, and each task has a value of its own.
_repeat: ContextVar[int] = ContextVar("repeat", default=0)


@register_model("tailrace")
class Tailrace(LocalChatCompletion):
    """``local-chat-completions``, but repeats differ."""

    def __init__(self, base_url: str | None = None, **options: Any) -> None:
        server = os.environ.get("TAILRACE_URL", "http://127.0.0.1:8080").rstrip("/")
        super().__init__(base_url=base_url or f"{server}/v1/chat/completions", **options)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        seen: Counter[str] = Counter()
        numbered: list[Instance] = []
        for request in requests:
            context, options = request.args
            equal = repr((context, options))
            arguments = (context, {**options, "repeat": seen[equal]})
            numbered.append(dataclasses.replace(request, arguments=arguments))
            seen[equal] += 1
        return super().generate_until(numbered, disable_tqdm)

    def _create_payload(
        self, messages: Any, generate: bool = False, gen_kwargs: Any = None, seed: int = 1234, **more: Any
    ) -> dict[str, Any]:
        repeat: int = gen_kwargs.pop("repeat")
        _repeat.set(repeat)
        return super()._create_payload(messages, generate, gen_kwargs, seed + repeat, **more)

    @property
    def header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}", "x-sample": str(_repeat.get())}

    @property
    def api_key(self) -> str:
        return os.environ["TAILRACE_API_KEY"]


if __name__ == "__main__":
    cli_evaluate()
