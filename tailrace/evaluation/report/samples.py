"""The samples within a report: lines of JSON, gzipped, as base64.

Each line is an array whose first element says what it is:

- ``["a", key]``: one more arm, after those of the figures.
- ``["i", id, category, input, targets, metadata]``: an item.
- ``["m", messages]``: what was sent.
- ``["s", arm, item, messages, sample, outcome, text, reasoning, finish_reason, error, completion_id, record, scores]``:
  a sample; arm, item and messages are places, from 0, among the lines before it and the arms of the figures. ``error``
  is ``[code, message]`` or null, ``record`` has the fields of ``Record`` in their order, ``scores`` has ``[verdict,
  value, answer, explanation, error]`` for each scorer of the run, in their order.
- ``["cut"]``: there are more samples than a page should hold.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from tailrace.evaluation.results import Row, encode
from tailrace.evaluation.shapes import Sample

#: More samples than this are not put into a page: it would no longer open at once.
MOST = 100_000
#: Bytes of gzip in a piece. A multiple of 3, so that each piece is base64 by itself.
PIECE = 3 * 256 * 1024
#: 1 is quick, 9 is small.
LEVEL = 5


def pieces(rows: Iterable[Row], arms: Sequence[str], scorers: Sequence[str]) -> Iterator[str]:
    """base64 texts; their bytes, one after the other, are a gzip file of the lines."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    packed = bytearray()
    for line in lines(rows, arms, scorers):
        packed += packer.compress(encode(line) + b"\n")
        if len(packed) >= PIECE:
            yield base64.b64encode(packed[:PIECE]).decode()
            del packed[:PIECE]
    packed += packer.flush()
    for start in range(0, len(packed), PIECE):
        yield base64.b64encode(packed[start : start + PIECE]).decode()


def lines(rows: Iterable[Row], arms: Sequence[str], scorers: Sequence[str]) -> Iterator[list[Any]]:
    """See above. Items and messages are there once, however many samples share them."""
    known = {key: place for place, key in enumerate(arms)}
    items: dict[str, int] = {}
    asked: dict[bytes, int] = {}
    for count, row in enumerate(rows):
        if count == MOST:
            yield ["cut"]
            return
        sample, item = row.sample, row.item
        if sample.arm not in known:
            known[sample.arm] = len(known)
            yield ["a", sample.arm]
        if item.id not in items:
            items[item.id] = len(items)
            yield ["i", item.id, item.category, item.input, item.targets, item.metadata]
        digest = hashlib.blake2b(encode(row.messages), digest_size=16).digest()
        if digest not in asked:
            asked[digest] = len(asked)
            yield ["m", row.messages]
        yield ["s", known[sample.arm], items[item.id], asked[digest], *_fields(sample, scorers)]


def _fields(sample: Sample, scorers: Sequence[str]) -> Iterator[Any]:
    yield sample.sample
    yield sample.outcome
    yield sample.text
    yield sample.reasoning
    yield sample.finish_reason
    yield sample.error and [sample.error.code, sample.error.message]
    yield sample.completion_id
    yield msgspec.structs.astuple(sample.record)
    yield [_score(sample, scorer) for scorer in scorers]


def _score(sample: Sample, scorer: str) -> list[Any]:
    verdict, score = sample.verdict(scorer), sample.scores.get(scorer)
    if score is None:
        return [verdict, None, None, None, None]
    return [verdict, score.value, score.answer, score.explanation, score.error]
