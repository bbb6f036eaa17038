"""A run: from an input file to its results, by as many commands as it takes."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import sqlite3
import tempfile
import uuid
from collections.abc import Callable, Generator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

import tailrace
from tailrace.batches import ENDED, Batch
from tailrace.cli.batch.lines import FAILED, OLD, Written, take, write
from tailrace.cli.batch.plan import Input, Plan, plan
from tailrace.cli.batch.progress import errors_of, progress, rows
from tailrace.cli.batch.state import State, beside
from tailrace.cli.output import say, warn
from tailrace.errors import TailraceError

P = ParamSpec("P")
T = TypeVar("T")

#: How often rows that only the server finds invalid are left out (``--skip-invalid``) before the run gives up.
ROUNDS = 20
#: Reasons of a failed batch that are told.
REASONS = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """``output`` None: nothing is fetched, as `submit` does. ``server`` tells servers apart. ``others``: answers stay
    that belong to no row of the input. ``input`` None: of a command that sends nothing."""

    input: Input | None
    output: Path | None
    errors: Path | None
    server: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    named_errors: bool = False
    others: bool = False
    skip_invalid: bool = False
    detach: bool = False
    quiet: bool = False

    def told(self, line: str) -> None:
        if not self.quiet:
            say(line)


@dataclasses.dataclass(slots=True)
class Outcome:
    """The exit code, and what there is to tell a program."""

    code: int
    batch: dict[str, Any] | None = None
    written: Written | None = None
    plan: Plan | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing is left that a later command could go on with."""
        return self.batch is None or self.batch["status"] in ENDED

    @property
    def is_refused(self) -> bool:
        """Whether validation ended the batch, so that nothing was sent."""
        return (
            self.batch is not None
            and self.batch["status"] == "failed"
            and self.batch.get("in_progress_at") is None
        )


async def run(client: tailrace.Client, state: State, job: Job) -> Outcome:
    """Go on with the batch of an earlier command, submit what has to be, and get the results. Raises TailraceError.

    Cancelled at any point, the same command goes on later.
    """
    assert job.input is not None
    last: dict[str, Any] | None = None
    earlier = await _earlier(client, state, job)
    if earlier is not None:
        outcome, is_all = await _go_on(earlier, state, job)
        if is_all:
            return outcome
        last = outcome.batch
    for _ in range(ROUNDS):
        with _spool(job.output) as spool:
            made = await in_thread(state, plan, state, job.input, job.output, job.errors, spool)
            if last is not None and not made.pending:
                job = dataclasses.replace(job, quiet=True)  # all of it has been told
            if (refused := _refusal(state, job, made)) is not None:
                return refused
            if not made.pending:
                break
            batch = await _submit(client, state, job, made, spool)
        outcome = Outcome(0, await batch.retrieve()) if job.detach else await _finish(batch, state, job)
        outcome.plan = made
        if not outcome.is_refused or not _leave_out(state, job, outcome):
            return outcome
    else:
        raise TailraceError(f"the server found invalid rows {ROUNDS} times: see `tailrace batch show`")
    outcome = Outcome(0, last, plan=made)
    return outcome if job.output is None else await in_thread(state, _settle, state, job, outcome, None)


def checked(job: Job) -> int | None:
    """The exit code where rows are invalid: nobody waits for a whole stack to hear of that."""
    assert job.input is not None
    with State(None) as state, Path(os.devnull).open("wb") as nowhere:
        outcome = _refusal(
            state, dataclasses.replace(job, quiet=True), plan(state, job.input, None, None, nowhere)
        )
    return None if outcome is None else outcome.code


async def in_thread(state: State, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Blocking work with the state, in a thread: the loop may have a whole stack to look after."""
    running = asyncio.get_running_loop().run_in_executor(None, functools.partial(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        state.stopped = True
        await asyncio.wait([running])
        running.exception()
        raise


def _refusal(state: State, job: Job, made: Plan) -> Outcome | None:
    """Nothing is sent of an input with invalid rows, unless they are to be left out."""
    if made.invalid and not job.skip_invalid:
        for complaint in made.complaints:
            warn(complaint)
        if made.invalid > len(made.complaints):
            warn(f"… and {made.invalid - len(made.complaints):,} more invalid rows")
        warn("nothing was sent; --skip-invalid leaves invalid rows out")
        return Outcome(1, plan=made)
    if made.done:
        job.told(f"{made.done:,} of {made.rows:,} rows are in {job.output} already")
    if made.invalid:
        job.told(f"{made.invalid:,} invalid rows are left out")
    return None


def spool_folder(output: Path | None) -> str | None:
    """Where there is room for the rows: beside the output."""
    return None if output is None else str(output.resolve().parent)


def _spool(output: Path | None) -> Any:
    """A file without a name, of which nothing stays."""
    return tempfile.TemporaryFile(dir=spool_folder(output))


# ---------------------------------------------------------------------------------------------- an earlier batch


async def _earlier(client: tailrace.Client, state: State, job: Job) -> Batch | None:
    """The batch that an earlier command left; also where that one ended before it knew of it."""
    id, file = state.get("batch"), state.get("file")
    if id is None and file is None:
        return None
    server = state.get("server")
    if server != job.server:
        raise TailraceError(
            f"{job.output} waits for a batch on {server}, and this is {job.server}: go on there, or remove {state.path}"
        )
    if id is not None:
        try:
            await client.batches.batch(id).retrieve()
        except tailrace.NotFound:
            warn(f"the server knows {id} no more: what has no result is sent again")
            return None
        return client.batches.batch(id)
    assert file is not None
    try:
        return await _create(client, state, file, job.settings)
    except tailrace.InvalidRequest:
        return None
    except tailrace.NotFound:
        return None


async def _create(client: tailrace.Client, state: State, file: str, settings: dict[str, Any]) -> Batch:
    """The batch of an uploaded file: the one that there is, else a new one."""
    batch: Batch | None = None
    async with aclosing(client.batches.list()) as batches:
        async for there in batches:
            if there["input_file_id"] == file:
                batch = client.batches.batch(there["id"])
                break
            if there["created_at"] < int(state.get("uploaded") or 0) - 60:
                break
    if batch is None:
        batch = await client.batches.create(file, idempotency_key=state.get("key"), **settings)
    state.put(batch=batch.id)
    return batch


async def _go_on(batch: Batch, state: State, job: Job) -> tuple[Outcome, bool]:
    """Get the results of the batch of an earlier command, and say whether that is all: there may be rows that it had
    not, or never sent."""
    now = await batch.retrieve()
    over = now["status"] in ENDED
    if not over and job.detach:
        return Outcome(0, now), True
    job.told(f"the batch of the last run, {batch.id}, is {now['status']}")
    outcome = await _finish(batch, state, job)
    assert outcome.batch is not None
    if outcome.is_refused:
        return outcome, not over and not _leave_out(state, job, outcome)
    if not over and outcome.batch["status"] != "completed":
        return outcome, True
    state.try_none_again(file=FAILED if over else None)
    return outcome, False


# ------------------------------------------------------------------------------------------------------ a new one


async def _submit(client: tailrace.Client, state: State, job: Job, made: Plan, spool: BinaryIO) -> Batch:
    spool.flush()
    job.told(f"sending {rows(made.pending)} ({_size(spool.tell())})")
    assert job.input is not None
    state.put(
        key=str(uuid.uuid4()),
        server=job.server,
        input=str(job.input.path),
        errors=None if job.errors is None else str(job.errors),
        named_errors="1" if job.named_errors else None,
        others="1" if job.others else None,
    )
    file = await client.files.upload(spool, name=f"{job.input.path.stem}.jsonl")
    state.put(file=file["id"], uploaded=str(file["created_at"]))
    batch = await client.batches.create(file["id"], idempotency_key=state.get("key"), **job.settings)
    state.put(batch=batch.id)
    job.told(f"batch {batch.id}")
    return batch


async def _finish(batch: Batch, state: State, job: Job) -> Outcome:
    """Watch it to its end, and write its results."""
    ended = await watch(batch, quiet=job.quiet)
    outcome = Outcome(1, ended)
    if outcome.is_refused:
        if not job.skip_invalid:
            explain(state, ended)
        return outcome
    return await collect(batch, ended, state, job)


async def watch(batch: Batch, *, quiet: bool) -> dict[str, Any]:
    """Show how it is doing until its end; the ``batch`` object then."""
    now: dict[str, Any] = {}
    with progress(quiet=quiet) as shown:
        async with aclosing(batch.watch()) as looks:
            async for now in looks:
                shown.show(now)
    return now


async def collect(batch: Batch, ended: dict[str, Any], state: State, job: Job) -> Outcome:
    """Fetch the results of a batch, also of one that runs, and write them beside those that are there."""
    runs = ended["status"] not in ENDED
    outcome = Outcome(0 if runs or ended["status"] == "completed" else 1, ended)
    with _spool(job.output) as fetched, _spool(job.output) as kept:
        await batch.download(fetched)
        fetched.seek(0)
        await in_thread(state, take, state, fetched, kept)
        return await in_thread(state, _settle, state, job, outcome, kept)


def _settle(state: State, job: Job, outcome: Outcome, kept: BinaryIO | None) -> Outcome:
    """Write both files, and tell how it ended."""
    assert job.output is not None
    assert job.errors is not None
    written = write(state, job.output, job.errors, kept, others=job.others, empty_errors=job.named_errors)
    bad = written.failed + written.invalid
    job.told(f"{rows(written.answered)} in {job.output}" + (f", {bad:,} in {job.errors}" if bad else ""))
    if written.dropped:
        job.told(f"lines that belong to no row any more: {written.dropped:,}, kept in {job.output}{OLD}")
    if outcome.batch is not None and outcome.code:
        explain(state, outcome.batch)
    elif written.missing and outcome.is_over:
        warn(f"{rows(written.missing)} without an end: run it again")
        outcome.code = 1
    outcome.written = written
    outcome.code = outcome.code or (3 if bad else 0)
    return outcome


def _leave_out(state: State, job: Job, outcome: Outcome) -> bool:
    """Whether what the server found invalid can be left out of the next try."""
    assert outcome.batch is not None
    if not job.skip_invalid:
        return False
    errors = errors_of(outcome.batch)
    lines = [error for error in errors if error.get("line")]
    if not lines or len(lines) < len(errors):
        explain(state, outcome.batch)
        return False
    for error in lines:
        state.refuse(error["line"], error["message"], error.get("param"))
    job.told(f"the server finds {rows(len(lines))} invalid: once more without them")
    return True


def explain(state: State, batch: dict[str, Any]) -> None:
    """Say why a batch has not completed, by the lines of the input."""
    errors = errors_of(batch)
    for error in errors[:REASONS]:
        line = error.get("line")
        at = state.sent_line(line) if line else None
        where = f"{state.get('input') or 'the file'}, line {at or line}: " if line else ""
        warn(f"{where}{reason_of(error)}")
    if len(errors) > REASONS:
        warn(f"… and {len(errors) - REASONS:,} more")
    warn(f"batch {batch['id']} is {batch['status']}")


def reason_of(error: dict[str, Any]) -> str:
    """With the field, where the message doesn't name it."""
    message, param = str(error.get("message") or error.get("code")), error.get("param")
    return message if not param or param in message else f"{param}: {message}"


def error_path(output: Path) -> Path:
    """Where failed rows go if nobody says: ``results.jsonl`` has ``results.errors.jsonl`` beside it."""
    return output.with_name(f"{output.stem}.errors{output.suffix}")


def state_of(output: Path | None) -> State:
    """Raises TailraceError, also where the output can't be one."""
    if output is None:
        return State(None)
    folder = output.resolve().parent
    if output.exists() and not output.is_file():
        raise TailraceError(f"{output} is not a regular file")
    if not folder.is_dir():
        raise TailraceError(f"there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise TailraceError(f"can't write into {folder}")
    return State(beside(output))


@contextmanager
def on_disk(output: Path | None) -> Generator[None]:
    """What is done with files meanwhile. Raises TailraceError where the disk is full, or fails."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, sqlite3.OperationalError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        where = "the temporary folder" if output is None else str(output.resolve().parent)
        raise TailraceError(
            f"can't write into {where}: {reason}. Mend that, and the same command goes on"
        ) from None


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"
