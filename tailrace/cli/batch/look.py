"""``tailrace batch watch``, ``list``, ``show``, ``results``, ``cancel`` and ``retry``: batches that are there."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

import tailrace
from tailrace.amounts import money
from tailrace.batches import ENDED, Batch
from tailrace.cli import server
from tailrace.cli.batch import job
from tailrace.cli.batch.lines import Written, merge
from tailrace.cli.batch.progress import cost_of, errors_of, rows
from tailrace.cli.batch.state import State, beside
from tailrace.cli.options import Home, Json
from tailrace.cli.output import say, warn
from tailrace.cli.running import INTERRUPTED
from tailrace.cli.tail import RETRIES

T = TypeVar("T")

#: Batches that a list shows where nobody says how many.
LISTED = 20
#: Characters of the widest line of a list.
WIDTH = 1000
#: Characters of a message in a table.
MESSAGE = 100

Id = Annotated[str, typer.Argument(metavar="ID", help="The batch.")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="OUTPUT", help="Where the results go, JSON lines.")
]
Errors = Annotated[
    Path | None,
    typer.Option(
        "--errors",
        metavar="FILE",
        dir_okay=False,
        help="Failed rows (default: OUTPUT.errors.jsonl, if any fails).",
    ),
]


def watch(
    id: Id, output: Output = None, errors: Errors = None, as_json: Json = False, home: Home = None
) -> None:
    """Show how a batch is doing until its end, and get its results."""

    async def use(client: tailrace.Client) -> int:
        batch = client.batches.batch(id)
        if as_json:
            ended: dict[str, Any] = {}
            async with aclosing(batch.watch()) as looks:
                async for ended in looks:
                    print(json.dumps(ended), flush=True)
        else:
            ended = await job.watch(batch, quiet=False)
        if output is not None:
            return await _save(batch, ended, output, errors, home, as_json=as_json)
        return _told_end(ended)

    try:
        code = server.with_server(home, use)
    except KeyboardInterrupt:
        warn(f"detached: batch {id} goes on, unless it has ended")
        code = INTERRUPTED
    raise typer.Exit(code)


def results(
    id: Id, output: Output = None, errors: Errors = None, as_json: Json = False, home: Home = None
) -> None:
    """Get the results of a batch, also while it runs: what has ended by now. Without -o all lines are printed."""

    async def use(client: tailrace.Client) -> int:
        batch = client.batches.batch(id)
        if output is None:
            with tempfile.TemporaryFile() as file:
                await batch.download(file)
                file.seek(0)
                shutil.copyfileobj(file, sys.stdout.buffer)
            return 0
        return await _save(batch, await batch.retrieve(), output, errors, home, as_json=as_json)

    raise typer.Exit(server.with_server(home, use))


async def _save(
    batch: Batch, now: dict[str, Any], output: Path, errors: Path | None, home: Path | None, *, as_json: bool
) -> int:
    """The results as files; beside those that are there, where a run has left its state."""
    over = now["status"] in ENDED
    with job.on_disk(output):
        outcome = await _with_state(batch, now, output, errors, home)
        code = 0 if outcome is None else outcome.code
        written = None if outcome is None else outcome.written
        if written is None:
            written = await _merged(batch, output, errors)
            code = _told_end(now) if over else 0
    if as_json:
        told = {"batch": now, "answered": written.answered, "failed": written.failed, "output": str(output)}
        print(json.dumps(told))
    else:
        failed = written.failed + written.invalid
        say(f"{rows(written.answered)} in {output}" + (f", {failed:,} in the error file" if failed else ""))
    return code


async def _with_state(
    batch: Batch, now: dict[str, Any], output: Path, errors: Path | None, home: Path | None
) -> job.Outcome | None:
    """The results as the run writes them whose batch it is; None where there is no such run."""
    if not beside(output).exists():
        return None
    with job.state_of(output) as state:
        if state.get("batch") != batch.id:
            return None
        outcome = await job.collect(batch, now, state, _left(state, output, errors, home))
        if outcome.is_over:
            state.remove()
        return outcome


async def _merged(batch: Batch, output: Path, errors: Path | None) -> Written:
    folder = job.spool_folder(output)
    with (
        State(None) as state,
        tempfile.TemporaryFile(dir=folder) as fetched,
        tempfile.TemporaryFile(dir=folder) as kept,
    ):
        await batch.download(fetched)
        fetched.seek(0)
        failures, named = errors or job.error_path(output), errors is not None
        return await job.in_thread(state, merge, state, fetched, kept, output, failures, empty_errors=named)


def _left(state: State, output: Path, errors: Path | None, home: Path | None) -> job.Job:
    """The run that left its state."""
    failures = errors or Path(state.get("errors") or job.error_path(output))
    return job.Job(
        input=None,
        output=output,
        errors=failures,
        server=server.identity(home),
        named_errors=errors is not None or state.get("named_errors") is not None,
        others=state.get("others") is not None,
        quiet=True,
    )


def _told_end(ended: dict[str, Any]) -> int:
    """The exit code of a batch, and why it has one."""
    if ended["status"] != "completed":
        with State(None) as nothing:
            job.explain(nothing, ended)
        return 1
    return 3 if ended["request_counts"]["failed"] else 0


def list_batches(
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many, the newest.")] = LISTED,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Show batches, the newest first."""

    async def ask(client: tailrace.Client) -> list[dict[str, Any]]:
        return [batch async for batch in client.batches.list(limit=limit)]

    found = _ask(home, ask)
    if as_json:
        print(json.dumps(found))
        return
    import rich.console
    from rich.markup import escape
    from rich.table import Table

    if not found:
        print("no batches")
        return
    table = Table(box=None, pad_edge=False)
    for title, justify in (
        ("id", "left"),
        ("created", "left"),
        ("status", "left"),
        ("rows", "right"),
        ("completed", "right"),
        ("failed", "right"),
        ("cost", "right"),
        ("name", "left"),
    ):
        table.add_column(title, justify="right" if justify == "right" else "left", no_wrap=True)
    for batch in found:
        counts = batch["request_counts"]
        numbers = [f"{counts[name]:,}" for name in ("total", "completed", "failed")]
        name = _name(batch) or ""
        cells = (
            batch["id"],
            _time(batch["created_at"]) or "",
            batch["status"],
            *numbers,
            money(cost_of(batch)),
            name,
        )
        table.add_row(*map(escape, cells))
    # An id is there to be copied: a terminal may break the line, but nothing is cut.
    rich.console.Console(highlight=False, width=WIDTH).print(table, crop=False)


def show(id: Id, as_json: Json = False, home: Home = None) -> None:
    """Show a batch, and why rows failed: each reason with its count and an example."""

    async def ask(client: tailrace.Client) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        batch = client.batches.batch(id)
        now = await batch.retrieve()
        return now, list(await batch.failures()) if now.get("in_progress_at") else []

    batch, failures = _ask(home, ask)
    if as_json:
        print(json.dumps(batch | {"failures": failures}))
        return
    _print_batch(batch)
    errors = errors_of(batch)
    if errors:
        print("\nwhy it failed")
    for error in errors:
        line = f"line {error['line']}: " if error.get("line") else ""
        print(f"  {line}{job.reason_of(error)}")
    if failures:
        print("\nwhy rows failed")
    for reason in failures:
        example: dict[str, Any] | None = reason.get("example")
        what = " ".join(str(reason[name]) for name in ("status", "code") if reason.get(name))
        print(f"  {reason['count']:>8,}  {what}: {_short(reason.get('message') or '')}")
        if example:
            print(f"            such as {example.get('custom_id')} (line {example.get('line')})")
    if failures:
        print(f"\nsend them again: tailrace batch retry {id}")


def _print_batch(batch: dict[str, Any]) -> None:
    counts: dict[str, int] = batch["request_counts"]
    usage: dict[str, Any] = batch.get("usage") or {}
    told: dict[str, Any] = {
        "batch": batch["id"],
        "name": _name(batch),
        "status": batch["status"],
        "model": batch.get("model"),
        "rows": f"{counts['total']:,}, {counts['completed']:,} completed, {counts['failed']:,} failed",
        "tokens": f"{usage.get('input_tokens') or 0:,} input, {usage.get('output_tokens') or 0:,} output",
        "cost": money(cost_of(batch)),
        "at once": batch.get("max_concurrency"),
        "created": _time(batch["created_at"]),
        "began": _time(batch.get("in_progress_at")),
        "ended": _time(next((batch[at] for at in (f"{s}_at" for s in ENDED) if batch.get(at)), None)),
        "expires": None if batch["status"] in ENDED else _time(batch.get("expires_at")),
        "input": batch["input_file_id"],
        "output": batch.get("output_file_id"),
        "errors": batch.get("error_file_id"),
        "retry of": batch.get("retry_of"),
    }
    for name, value in told.items():
        if value is not None:
            print(f"{name:<10}{value}")


def cancel(id: Id, as_json: Json = False, home: Home = None) -> None:
    """Cancel a batch: what was answered stays, what runs is stopped, the rest is not sent."""
    batch = _ask(home, lambda client: client.batches.batch(id).cancel())
    print(json.dumps(batch) if as_json else f"{id}  {batch['status']}")


def retry(
    id: Id,
    errors: Annotated[
        list[str] | None,
        typer.Option("--error", metavar="CODE", help="Only rows that failed with this code; repeatable."),
    ] = None,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Send the failed rows of a batch again, as a batch of their own."""

    async def ask(client: tailrace.Client) -> dict[str, Any]:
        return await (await client.batches.batch(id).retry(errors=errors or ())).retrieve()

    made = _ask(home, ask)
    if as_json:
        print(json.dumps(made))
        return
    print(f"{made['id']}  {made['status']}")
    print(f"attach with: tailrace batch watch {made['id']} -o results.jsonl")


def _ask(home: Path | None, ask: Callable[[tailrace.Client], Awaitable[T]]) -> T:
    async def run() -> T:
        async with tailrace.Client(home=home, retries=RETRIES) as client:
            return await ask(client)

    return asyncio.run(run())


def _name(batch: dict[str, Any]) -> str | None:
    metadata: dict[str, str] | None = batch.get("metadata")
    return metadata.get("name") if metadata else None


def _time(second: int | None) -> str | None:
    return None if second is None else datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _short(message: str) -> str:
    text = " ".join(message.split())
    return text if len(text) <= MESSAGE else text[: MESSAGE - 1] + "…"
