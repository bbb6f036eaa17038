"""``tailrace batch run`` and ``submit``: a file of rows becomes a batch, and the batch a file of results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import tailrace
from tailrace.batches import WINDOW
from tailrace.cli import server
from tailrace.cli.batch import dryrun, job
from tailrace.cli.batch.options import (
    InputFile,
    Limit,
    MaxConcurrency,
    MaxErrorRate,
    Model,
    Name,
    Params,
    SkipInvalid,
    TemplateOption,
    Window,
    input_of,
    settings_of,
)
from tailrace.cli.batch.state import State
from tailrace.cli.options import Home, Json
from tailrace.cli.output import warn
from tailrace.cli.running import INTERRUPTED
from tailrace.errors import TailraceError

Errors = Annotated[
    Path | None,
    typer.Option(
        "--errors",
        metavar="FILE",
        dir_okay=False,
        help="Failed rows (default: OUTPUT.errors.jsonl, if any fails).",
    ),
]
LocalModel = Annotated[
    bool, typer.Option("--local-model", help="With no server configured: a small real model on this CPU.")
]


def run(
    input: InputFile,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUTPUT", help="Where the results go, JSON lines."),
    ] = None,
    errors: Errors = None,
    model: Model = None,
    params: Params = None,
    template: TemplateOption = None,
    limit: Limit = None,
    skip_invalid: SkipInvalid = False,
    max_concurrency: MaxConcurrency = None,
    max_error_rate: MaxErrorRate = None,
    window: Window = WINDOW,
    name: Name = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return as soon as the batch is submitted.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would come to; nothing is submitted.")
    ] = False,
    local_model: LocalModel = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Run a file of rows as a batch and write the results. Run again, it goes on where it was: what is in OUTPUT is
    neither sent nor paid for again."""
    rows = input_of(input, model, params, template, limit)
    if dry_run:
        code = dryrun.dry_run(
            rows, output, home, skip_invalid=skip_invalid, as_json=as_json, local_model=local_model
        )
        raise typer.Exit(code)
    if output is None:
        raise typer.BadParameter("say where the results go: -o results.jsonl", param_hint="-o")
    failed = errors or job.error_path(output)
    if len({path.resolve() for path in (input, output, failed)}) < 3:
        raise typer.BadParameter("input, output and error file must be three files", param_hint="-o")
    configured = server.is_configured(home)
    if detach and not configured:
        raise TailraceError(
            "nothing would be there to go on with the batch: first start a stack that stays (tailrace up), "
            "or leave --detach out"
        )
    if local_model and configured:
        raise typer.BadParameter(
            "a server is configured, which has its own models", param_hint="--local-model"
        )
    what = job.Job(
        input=rows,
        output=output,
        errors=failed,
        server=server.identity(home),
        settings=settings_of(window, max_concurrency, max_error_rate, name),
        named_errors=errors is not None,
        others=limit is not None,
        skip_invalid=skip_invalid,
        detach=detach,
        quiet=as_json,
    )
    _carry_out(what, home, configured=configured, local_model=local_model)


def submit(
    input: InputFile,
    model: Model = None,
    params: Params = None,
    template: TemplateOption = None,
    limit: Limit = None,
    skip_invalid: SkipInvalid = False,
    max_concurrency: MaxConcurrency = None,
    max_error_rate: MaxErrorRate = None,
    window: Window = WINDOW,
    name: Name = None,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Submit a file of rows as a batch, and print its id. Results: `batch watch ID -o FILE`."""
    what = job.Job(
        input=input_of(input, model, params, template, limit),
        output=None,
        errors=None,
        server=server.identity(home),
        settings=settings_of(window, max_concurrency, max_error_rate, name),
        skip_invalid=skip_invalid,
        detach=True,
        quiet=as_json,
    )
    if not server.is_configured(home):
        raise TailraceError(
            "no server is known: start one that stays (tailrace up), or use `tailrace batch run`"
        )
    _carry_out(what, home, configured=True, local_model=False)


def _carry_out(what: job.Job, home: Path | None, *, configured: bool, local_model: bool) -> None:
    with job.on_disk(what.output), job.state_of(what.output) as state:
        ended: list[job.Outcome] = []

        async def use(client: tailrace.Client) -> int:
            outcome = await job.run(client, state, what)
            ended.append(outcome)
            if outcome.is_over:
                state.remove()
            return outcome.code

        try:
            if configured:
                code = server.with_server(home, use)
            elif (refused := job.checked(what)) is not None:
                code = refused
            else:
                code = server.embedded(home, local_model=local_model, quiet=what.quiet, use=use)
        except KeyboardInterrupt:
            code = INTERRUPTED
        finally:
            if not ended and state.get("file") is None and state.get("batch") is None:
                state.remove()
        if ended:
            _tell(what, ended[0], home)
        elif code == INTERRUPTED:
            _interrupted(state, what, home, configured=configured)
    raise typer.Exit(code)


def _tell(what: job.Job, outcome: job.Outcome, home: Path | None) -> None:
    if what.quiet:
        print(json.dumps(report(what, outcome)))
    elif not outcome.is_over and outcome.batch is not None:
        what.told(f"attach with: {attach(outcome.batch['id'], what.output, home)}")


def report(what: job.Job, outcome: job.Outcome) -> dict[str, Any]:
    """What ``--json`` prints."""
    made, written = outcome.plan, outcome.written
    return {
        "batch": outcome.batch,
        "rows": None if made is None else made.rows,
        "already": None if made is None else made.done,
        "sent": None if made is None else made.pending,
        "invalid": None if made is None else made.invalid,
        "answered": None if written is None else written.answered,
        "failed": None if written is None else written.failed,
        "output": None if what.output is None or written is None else str(what.output),
        "errors": None if what.errors is None or not what.errors.exists() else str(what.errors),
    }


def attach(id: str, output: Path | None, home: Path | None) -> str:
    """The command that goes on with a batch."""
    where = f" --home {home}" if home else ""
    return f"tailrace batch watch {id} -o {output or 'results.jsonl'}{where}"


def _interrupted(state: State, what: job.Job, home: Path | None, *, configured: bool) -> None:
    id = state.get("batch")
    if id is None:
        warn("stopped before anything was submitted; the same command starts it")
    elif configured:
        warn(f"detached: batch {id} goes on. Attach with: {attach(id, what.output, home)}")
    else:
        warn(
            f"stopped, and batch {id} with it: the same command goes on with it ({' '.join(sys.argv[1:3])} …)"
        )
