"""What a run has to do: the input rendered, checked, and compared with the output that is there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import BinaryIO

import msgspec

from tailrace.batchinput import InvalidRow, Rendered, Renderer, Source, read
from tailrace.cli.batch.lines import ERRORS, OUTPUT, look
from tailrace.cli.batch.state import State
from tailrace.errors import TailraceError

#: Invalid rows that are told about; the rest is counted.
TOLD = 20


@dataclasses.dataclass(slots=True)
class Plan:
    """``done`` rows have their line already; ``pending`` ones are in the file to send."""

    rows: int = 0
    done: int = 0
    pending: int = 0
    invalid: int = 0
    complaints: list[str] = dataclasses.field(default_factory=list[str])
    first: Rendered | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    path: Path
    renderer: Renderer
    limit: int | None = None


def plan(
    state: State,
    input: Input,
    output: Path | None,
    errors: Path | None,
    spool: BinaryIO,
    *,
    most: int | None = None,
) -> Plan:
    """Read all of the input, and write into ``spool`` the lines that have to be sent; the first ``most`` of them."""
    made = Plan()
    state.restart()
    if output is not None:
        look(state, output, OUTPUT)
    if errors is not None:
        look(state, errors, ERRORS)
    copies: dict[bytes, int] = {}
    for source in read(input.path):
        if input.limit is not None and made.rows + made.invalid >= input.limit:
            break
        try:
            if isinstance(source, InvalidRow):
                raise source
            _one(state, input.renderer, source, made, copies, spool, most)
        except InvalidRow as invalid:
            made.invalid += 1
            if len(made.complaints) < TOLD:
                made.complaints.append(f"{input.path}, {invalid}")
            state.add_invalid(invalid.line, _line(invalid))
    if not made.rows and not made.invalid:
        raise TailraceError(f"{input.path} has no rows")
    state.put(batch=None, file=None, key=None)
    return made


def _one(
    state: State,
    renderer: Renderer,
    source: Source,
    made: Plan,
    copies: dict[bytes, int],
    spool: BinaryIO,
    most: int | None,
) -> None:
    row = renderer.render(source)
    name = row.custom_id
    while not row.given and state.has(row.custom_id):  # another row asks the very same
        copies[row.digest] = copies.get(row.digest, 1) + 1
        row = row.renamed(f"{name}-{copies[row.digest]}")
    refused = state.refused(row)
    if refused is not None:
        raise refused
    done = state.knows(OUTPUT, row)
    pending = not done and not state.tried(row)
    if not state.add(made.rows, row, sent=pending):
        first = state.line_of(row.custom_id)
        raise InvalidRow(
            row.line, f"{row.custom_id!r} is in line {first} already", "custom_id", row.custom_id
        )
    if pending and (most is None or made.pending < most):
        spool.write(row.payload)
        spool.write(b"\n")
    made.first = made.first or row
    made.rows += 1
    made.done += done
    made.pending += pending


def _line(invalid: InvalidRow) -> bytes:
    """An invalid row as a line of the error file."""
    error = {"code": "invalid_row", "message": str(invalid), "param": invalid.param, "line": invalid.line}
    return msgspec.json.encode({"id": None, "custom_id": invalid.custom_id, "response": None, "error": error})
