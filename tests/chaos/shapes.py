"""What is asked: completions of all shapes, drawn from a seed, each with what its answer has to say. No I/O."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from email.utils import formatdate
from random import Random
from typing import Any, Literal

from tests.support.tries import mark

How = Literal["seed", "async", "client", "bulk"]

#: (choice, field): what the concatenated pieces of a field are known by; a tool call's arguments are ``tool_calls[i]``.
Place = tuple[int, str]

#: Words and milliseconds between them, by pace, with the share of completions that go at it. The words are those of
#: all choices, fields and calls together.
PACES: dict[str, tuple[float, tuple[int, int], tuple[int, int]]] = {
    "short": (0.14, (3, 12), (15, 60)),
    "medium": (0.46, (20, 50), (150, 300)),
    "long": (0.26, (40, 65), (300, 450)),
    "slow": (0.11, (8, 18), (900, 1400)),
    "burst": (0.03, (150, 250), (0, 0)),
}
#: Who is served, in X-On-Behalf-Of.
END_USERS = ("ann", "bob", "zoë")
#: The lowest deadline (``timeout``) that is asked for, in seconds, and the highest.
DEADLINES = (1.0, 6.0)


@dataclass(frozen=True, slots=True)
class Ask:
    """One completion to ask for. ``number`` is in its words, its metadata and its ``fake_id``."""

    number: int
    shape: str
    how: How
    body: dict[str, Any]
    #: What each place has to say: the text itself, or of a sampled answer the number of its words.
    says: dict[Place, str | int]
    idempotency_key: str | None = None
    end_user: str | None = None
    #: Cancelled when a reader has seen so many chunks.
    cancel_at: int | None = None
    #: ``x-on-disconnect: cancel``, with one reader that leaves.
    leaves: bool = False
    #: The provider says 400, whatever is tried.
    refused: bool = False

    @property
    def sampled(self) -> bool:
        return any(isinstance(said, int) for said in self.says.values())

    @property
    def stored(self) -> bool:
        return self.body.get("store") is not False

    @property
    def deadline(self) -> bool:
        return "timeout" in self.body

    @property
    def fake_id(self) -> str:
        return self.body["fake_id"]

    @property
    def headers(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.idempotency_key is not None:
            found["Idempotency-Key"] = self.idempotency_key
        if self.end_user is not None:
            found["X-On-Behalf-Of"] = self.end_user
        if self.leaves:
            found["x-on-disconnect"] = "cancel"
        return found


class Shapes:
    """Draws one ask after the other. ``run`` makes the Idempotency-Keys of this run its own; ``slowness`` is what the
    time between words is multiplied by."""

    def __init__(self, seed: int, run: str, *, slowness: float = 1.0) -> None:
        self._random = Random(f"{seed}:shapes")
        self._run = run
        self._slowness = slowness
        self._number = 0

    def next(self) -> Ask:
        random, number = self._random, self._number
        self._number += 1
        how = random.choices(("seed", "async", "client", "bulk"), (0.55, 0.28, 0.12, 0.05))[0]
        sampled = random.random() < 0.4
        pace, order, says = self._order(number, sampled)
        body: dict[str, Any] = {
            "model": "fake",
            "messages": [{"role": "user", "content": f"question {number}"}],
            "temperature": 1 if sampled else 0,
            "metadata": {"chaos": str(number)},
            "fake_id": f"{self._run}.{number}",
        }
        choices = 1 + max(choice for choice, _ in says)
        if choices > 1:
            body["n"] = choices
        if "arguments" in order:
            body["tools"] = [
                {"type": "function", "function": {"name": f"tool_{i}"}}
                for i in range(len(order["arguments"]))
            ]
        special = random.random()
        name = f"{pace}, {'sampled' if sampled else 'deterministic'}"
        refused = special < 0.01
        if refused:
            body["fake"], name = {"status": 400}, "refused"
        elif special < 0.22:
            failure, failing = self._failing(order)
            body["fake"], name = [*[failing] * random.randint(1, 2), order], f"first {failure}"
        else:
            body["fake"] = order
        if random.random() < 0.08:
            body["store"] = False
        if random.random() < 0.02:
            body["timeout"], name = round(random.uniform(*DEADLINES), 1), "deadline"
        leaves = how == "seed" and random.random() < 0.04
        keyed = how in ("client", "bulk") or random.random() < 0.5
        return Ask(
            number=number,
            shape="leaves" if leaves else name,
            how=how,
            body=body,
            says=says,
            idempotency_key=f"{self._run}-{number}" if keyed else None,
            end_user=random.choice(END_USERS) if random.random() < 0.15 and how != "client" else None,
            cancel_at=random.randint(0, 15) if random.random() < 0.06 else None,
            leaves=leaves,
            refused=refused,
        )

    def _order(self, number: int, sampled: bool) -> tuple[str, dict[str, Any], dict[Place, str | int]]:
        """The order for the backend, and what has to come out of it."""
        random = self._random
        pace = random.choices(list(PACES), [share for share, _, _ in PACES.values()])[0]
        _, (fewest, most), intervals = PACES[pace]
        choices = random.choices((1, 2, 3), (0.75, 0.18, 0.07))[0]
        calls = random.randint(1, 2) if not sampled and random.random() < 0.2 else 0
        thinks = random.random() < 0.25
        words = max(2, round(random.randint(fewest, most) / (choices * (max(1, calls) + 0.5 * thinks))))
        reasoning = max(2, words // 2) if thinks else 0
        order: dict[str, Any] = {"interval_ms": round(random.randint(*intervals) * self._slowness)}
        if reasoning:
            order["reasoning"] = reasoning
        if random.random() < 0.3:
            order["first_delay_ms"] = random.randint(10, 800)
        said = [f" w{number}.{i}" for i in range(words)]
        order |= {"pieces": said, "sampled" if sampled else "varied": True}
        says: dict[Place, str | int] = {}
        if calls:
            notes = [" ".join(f"a{number}.{call}.{i}" for i in range(words)) for call in range(calls)]
            order["arguments"] = [json.dumps({"note": note}) for note in notes]
            order["pieces"] = said[:3]
        for choice in range(choices):
            pieces: list[str] = order["pieces"]
            if sampled:
                says[choice, "content"] = len(pieces)
                if reasoning:
                    says[choice, "reasoning_content"] = reasoning
                continue
            says[choice, "content"] = "".join(piece + mark(choice) for piece in pieces)
            if reasoning:
                says[choice, "reasoning_content"] = "".join(
                    f" think{i}{mark(choice)}" for i in range(reasoning)
                )
            for call in range(calls):
                says[choice, f"tool_calls[{call}]"] = order["arguments"][call]
        return pace, order, says

    def _failing(self, order: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """What goes wrong at first, before the first chunk or after some, and what to call it."""
        random = self._random
        seconds, date = str(random.randint(0, 2)), formatdate(time.time() + 2, usegmt=True)
        some = random.randint(1, 8)
        kinds: dict[str, dict[str, Any]] = {
            "429": {"status": 429, "headers": {"retry-after": random.choice((seconds, date))}},
            "408 or 409": {"status": random.choice((408, 409))},
            "5xx": {"status": random.choice((500, 502, 503))},
            "dropped": {"drop": True},
            "silent": {**order, "first_delay_ms": 60_000},
            "truncated at once": {**order, "cut_at_byte": 40},
            "truncated": {
                **order,
                "cut_at_byte": 250 * some,
                "cut": random.choice(("close", "reset", "end")),
            },
            "stalled": {**order, "stall_after": some},
        }
        return random.choice(list(kinds.items()))
