"""What a batch of an input file would come to: how many rows, tokens, and at what cost. Nothing is sent."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import BinaryIO

import msgspec

from producers.batchlines import InputRow, LineError, read_lines, read_row
from producers.checking import Asked, Asking
from schemas.caching import cache_policy
from schemas.estimate import estimate
from schemas.headers import cache_directives
from schemas.records import Usage
from stores.cache import Cache

#: Rows that are looked at before the process's other threads are let in, and for how long they are, in seconds: a row
#: takes some 30 µs of the interpreter, which the gateway's streams share.
TURN_ROWS, TURN_PAUSE = 50, 0.001
#: Bad lines that are told of.
ERRORS = 20
#: Bytes that are counted at once of what is not looked at.
COUNT_BYTES = 1024 * 1024

#: The cost of tokens of a provider's model, in nano-units; None where nobody knows.
Cost = Callable[[str, str, Usage], int | None]


class Estimate(msgspec.Struct, frozen=True):
    """``sampled`` of the file's ``rows`` were looked at; what is ``valid``, ``invalid`` and ``cached`` is counted among
    those. Tokens and cost are those of all rows that would be sent, if the others are like them."""

    rows: int
    sampled: int
    valid: int
    invalid: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    cost_nano: int | None
    errors: list[LineError]


class Estimator:
    """``most`` is the bytes of a line."""

    def __init__(self, tenant: str, asking: Asking, cache: Cache, cost: Cost, *, most: int) -> None:
        self._tenant = tenant
        self._asking = asking
        self._cache = cache
        self._cost = cost
        self._most = most
        self._ids: set[str] = set()
        self._errors: list[LineError] = []
        self._valid = self._invalid = self._cached = 0
        self._prompt = self._answer = self._nano = 0
        self._priced = True

    def read(self, file: BinaryIO, sample: int) -> Estimate:
        page: list[Asked] = []
        sampled = 0
        for line in read_lines(file, self._most):
            row = read_row(line, self._most)
            asked = self._asking.ask(row) if isinstance(row, InputRow) else row
            if isinstance(asked, Asked) and asked.row.custom_id in self._ids:
                message = f"The custom_id {asked.row.custom_id[:80]!r} is that of an earlier line, too."
                asked = LineError("duplicate_custom_id", message, "custom_id", line.number)
            if isinstance(asked, Asked):
                self._ids.add(asked.row.custom_id)
                page.append(asked)
                self._valid += 1
            else:
                self._invalid += 1
                self._errors += asked if isinstance(asked, list) else [asked]
            sampled += 1
            if sampled % TURN_ROWS == 0:
                self._add(page)
                page.clear()
                del self._errors[ERRORS:]
                time.sleep(TURN_PAUSE)
            if sampled == sample:
                break
        self._add(page)
        rows = sampled + _rest(file)
        part = rows / sampled if sampled else 0
        return Estimate(
            rows=rows,
            sampled=sampled,
            valid=self._valid,
            invalid=self._invalid,
            cached=self._cached,
            prompt_tokens=round(self._prompt * part),
            completion_tokens=round(self._answer * part),
            cost_nano=round(self._nano * part) if self._priced else None,
            errors=self._errors[:ERRORS],
        )

    def _add(self, page: list[Asked]) -> None:
        ages = self._cache.ages(self._tenant, [asked.fingerprint for asked in page]) if page else {}
        for asked in page:
            age_ms = ages.get(asked.fingerprint)
            if age_ms is not None and _takes(asked, age_ms):
                self._cached += 1
                continue
            prompt, answer = estimate(asked.params)
            usage = Usage(prompt_tokens=prompt, completion_tokens=answer)
            nano = self._cost(asked.resolved.provider, asked.resolved.model, usage)
            self._prompt += prompt
            self._answer += answer
            self._nano += nano or 0
            self._priced = self._priced and nano is not None


def _takes(asked: Asked, age_ms: int) -> bool:
    """Whether an answer so old answers the row."""
    request, headers = asked.row.request, asked.row.headers
    policy = cache_policy(
        cache_directives(headers.cache_control),
        temperature=request.temperature,
        sample=headers.sample,
        store=request.store is not False,
    )
    return policy.reads and (policy.max_age is None or age_ms <= policy.max_age * 1000)


def _rest(file: BinaryIO) -> int:
    """The lines that are left of a file."""
    lines, last = 0, b"\n"
    while data := file.read(COUNT_BYTES):
        lines += data.count(b"\n")
        last = data[-1:]
    return lines + (last != b"\n")
