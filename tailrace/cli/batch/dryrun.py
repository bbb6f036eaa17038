"""``tailrace batch run --dry-run``: what a run would come to. Nothing is submitted."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

import tailrace
from tailrace import connection
from tailrace.amounts import money, span
from tailrace.cli import server
from tailrace.cli.batch import job
from tailrace.cli.batch.plan import Input, Plan, plan
from tailrace.cli.batch.state import State, beside
from tailrace.cli.output import warn

#: Rows that are looked at; the estimate takes the others to be like them.
SAMPLE = 100_000
#: Batches in which the pace of the model is looked up.
LOOKED_AT = 50


def dry_run(
    rows: Input,
    output: Path | None,
    home: Path | None,
    *,
    skip_invalid: bool,
    as_json: bool,
    local_model: bool = False,
) -> int:
    """Print it; the exit code is 1 where rows are invalid that a run wouldn't leave out. ``local_model``: whether the
    run would bring it along."""
    with State(None) as state, tempfile.TemporaryFile(dir=job.spool_folder(output)) as spool:
        errors = None if output is None else job.error_path(output)
        made = plan(state, rows, output, errors, spool, most=SAMPLE)
        told: list[dict[str, Any]] = []
        if made.pending and server.is_configured(home):

            async def use(client: tailrace.Client) -> int:
                told.append(await _ask(client, made, spool))
                return 0

            server.with_server(home, use)
        elif made.pending:
            told.append(_here(made, spool, home, local_model=local_model))
        found = told[0] if told else {"cached": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost": "0"}
    if output is not None and beside(output).exists():
        warn(f"a batch of an earlier run is not finished: the next run goes on with it ({beside(output)})")
    if as_json:
        print(json.dumps(_report(made, found)))
    else:
        _print(made, found)
    for complaint in made.complaints:
        warn(complaint)
    return 1 if not skip_invalid and (made.invalid or found.get("invalid")) else 0


async def _ask(client: tailrace.Client, made: Plan, spool: BinaryIO) -> dict[str, Any]:
    """The server's estimate, which knows the cache and the prices."""
    sent = min(made.pending, SAMPLE)
    file = await client.files.upload(spool, name="estimate.jsonl")
    try:
        found = await client.batches.estimate(file["id"], sample=sent)
    finally:
        await client.files.delete(file["id"])
    part = made.pending / sent
    for name in ("cached", "prompt_tokens", "completion_tokens"):
        found[name] = round(found[name] * part)
    if found["cost"] is not None:
        found["cost"] = str(round(int(found["cost"]) * part))
    model = made.first.body.get("model") if made.first else None
    rate = await rows_per_second(client, model)
    found["seconds"] = None if rate is None else round((made.pending - found["cached"]) / rate, 1)
    return found


async def rows_per_second(client: tailrace.Client, model: str | None) -> float | None:
    """Rows per second of the newest batch of the same model that has its end."""
    async with aclosing(client.batches.list(limit=LOOKED_AT)) as batches:
        async for batch in batches:
            rows = batch["request_counts"]["completed"]
            if batch["model"] == model and batch["status"] == "completed" and rows:
                return rows / max(1, batch["completed_at"] - batch["in_progress_at"])
    return None


def _here(made: Plan, spool: BinaryIO, home: Path | None, *, local_model: bool) -> dict[str, Any]:
    spool.seek(0)
    bodies = (msgspec.json.decode(line)["body"] for line in spool)
    part = made.pending / min(made.pending, SAMPLE)
    return estimate_here(bodies, home, part, local_model=local_model)


def estimate_here(
    bodies: Iterable[dict[str, Any]], home: Path | None, part: float = 1.0, *, local_model: bool
) -> dict[str, Any]:
    """What requests come to, without a server: tokens by their usual length, and prices where a providers.toml is
    found. ``part``: of how many requests each of these is one."""
    from schemas.estimate import estimate
    from schemas.records import Usage

    cost = _prices(home, local_model=local_model)
    prompt = answer = nano = 0
    known = True
    for body in bodies:
        tokens = estimate(body)
        prompt, answer = prompt + tokens[0], answer + tokens[1]
        price = cost(body["model"], Usage(prompt_tokens=tokens[0], completion_tokens=tokens[1]))
        known, nano = known and price is not None, nano + (price or 0)
    return {
        "cached": None,
        "prompt_tokens": round(prompt * part),
        "completion_tokens": round(answer * part),
        "cost": str(round(nano * part)) if known else None,
        "seconds": None,
    }


def _prices(home: Path | None, *, local_model: bool) -> Callable[[str, Any], int | None]:
    """What tokens of a model cost; None where nobody knows."""
    from schemas.errors import ModelNotFound
    from schemas.prices import Prices
    from tailrace.embedded import providers
    from tailrace.embedded.options import StackError

    try:
        named = os.environ.get("TAILRACE_PROVIDERS")
        found = providers.foresee(connection.home_path(home), named, local_model=local_model)
    except StackError:
        return _unknown
    prices, now_ms = Prices(found.providers), time.time_ns() // 1_000_000

    def cost(model: str, usage: Any) -> int | None:
        try:
            resolved = found.resolve(model)
        except ModelNotFound:
            return None
        return prices.cost_nano(resolved.provider, resolved.model, usage, now_ms)

    return cost


def _unknown(model: str, usage: Any) -> int | None:
    return None


def _report(made: Plan, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "rows": made.rows,
        "already": made.done,
        "pending": made.pending,
        "invalid": made.invalid,
        "cached": found["cached"],
        "prompt_tokens": found["prompt_tokens"],
        "completion_tokens": found["completion_tokens"],
        "cost": found["cost"],
        "seconds": found.get("seconds"),
        "errors": found.get("errors") or [],
        "first": None if made.first is None else msgspec.json.decode(made.first.payload),
    }


def _print(made: Plan, found: dict[str, Any]) -> None:
    cached, seconds = found["cached"], found.get("seconds")
    cost = None if found["cost"] is None else int(found["cost"])
    rows = {
        "rows": f"{made.rows:,}" + (f", {made.invalid:,} invalid besides" if made.invalid else ""),
        "to send": f"{made.pending:,}" + (f" ({made.done:,} are in the output already)" if made.done else ""),
        "cached": "? (no server runs that would know)" if cached is None else f"{cached:,}",
        "tokens": f"about {found['prompt_tokens']:,} input, up to {found['completion_tokens']:,} output",
        "cost": f"up to {money(cost)}" if cost is not None else "? (a model has no price)",
        "time": "? (no batch of the model has ended yet)" if seconds is None else f"about {span(seconds)}",
    }
    for name, value in rows.items():
        print(f"{name:<10}{value}")
    errors: list[dict[str, Any]] = found.get("errors") or []
    for error in errors:
        print(f"invalid   line {error['line']} of what would be sent: {error['message']}")
    if made.first is not None:
        print("\nthe first row, as it would be sent:")
        print(json.dumps(made.first.body, indent=2, ensure_ascii=False))
