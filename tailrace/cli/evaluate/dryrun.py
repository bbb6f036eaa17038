"""``tailrace eval run --dry-run``: what a run would come to. Nothing is asked, and nothing stays of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tailrace
from tailrace.amounts import money, span
from tailrace.cli import server
from tailrace.cli.batch.dryrun import estimate_here, rows_per_second
from tailrace.evaluation.formats import count

if TYPE_CHECKING:
    from tailrace.evaluation.fanout import Work
    from tailrace.evaluation.loading import Loaded
    from tailrace.evaluation.runner import Run

#: Requests of an arm that are looked at; the estimate takes the others to be like them.
SAMPLE = 2000
#: Bytes of an answer, for a judge's prompt, where its request sets no limit; and bytes of a token.
ANSWER_TOKENS, TOKEN_BYTES = 512, 4


@dataclasses.dataclass(slots=True)
class Part:
    """An arm or a judge. ``earlier``: answers that earlier runs have. What is ``cached`` is among the others."""

    label: str
    requests: int
    earlier: int
    cached: int | None = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_nano: int | None = 0
    seconds: float | None = 0.0
    error: str | None = None


def dry_run(
    loaded: Loaded, runs: Path, home: Path | None, *, fresh: bool, local_model: bool, as_json: bool
) -> int:
    """Print it; the exit code is 1 where the server would refuse requests."""
    from tailrace.cli.evaluate.run import begin
    from tailrace.evaluation.runner import Run

    with tempfile.TemporaryDirectory() as scratch:
        folder = begin(loaded, Path(scratch), server.identity(home), fresh=fresh)
        with Run(folder) as run:
            if not fresh:
                run.reuse(runs)
            parts: list[Part] = []
            if server.is_configured(home):

                async def use(client: tailrace.Client) -> int:
                    parts.extend([await _asked(client, work) for work in run.works])
                    parts.extend([await _judged(client, *judge) for judge in _judges(run)])
                    return 0

                server.with_server(home, use)
            else:
                parts.extend(_here(work, home, local_model=local_model) for work in run.works)
                for label, bodies, count in _judges(run):
                    part = count / len(bodies)
                    found = estimate_here(bodies, home, part, local_model=local_model)
                    parts.append(_part(label, count, 0, found, 1.0))
            prompts = list(_prompts(run))
            shape = (len(run.items), len(run.works), run.suite.samples)
    if as_json:
        names = ("items", "arms", "samples")
        told = dict(zip(names, shape, strict=True)) | {"parts": [dataclasses.asdict(part) for part in parts]}
        print(json.dumps(told | {"prompts": dict(prompts)}))
    else:
        _print(parts, prompts, shape, server.is_configured(home))
    return 1 if any(part.error for part in parts) else 0


async def _asked(client: tailrace.Client, work: Work) -> Part:
    from tailrace.evaluation.fanout import estimate

    pending = work.pending()
    total = len(work.asked)
    if not pending:
        return Part(work.label, total, total)
    rows = [work.row(id) for id in pending[:SAMPLE]]
    found = await estimate(client, rows, sample=SAMPLE)
    scale = len(pending) / len(rows)
    part = _part(work.label, total, total - len(pending), found, scale)
    rate = await rows_per_second(client, rows[0]["body"]["model"])
    part.seconds = None if rate is None else (len(pending) - (part.cached or 0)) / rate
    return part


async def _judged(client: tailrace.Client, label: str, bodies: list[dict[str, Any]], count: int) -> Part:
    from tailrace.evaluation import requests
    from tailrace.evaluation.fanout import estimate

    rows = [requests.judge_row(str(n), body) for n, body in enumerate(bodies)]
    found = await estimate(client, rows, sample=len(rows))
    part = _part(label, count, 0, found | {"cached": None}, count / len(rows))
    rate = await rows_per_second(client, bodies[0]["model"])
    part.seconds = None if rate is None else count / rate
    return part


def _here(work: Work, home: Path | None, *, local_model: bool) -> Part:
    pending = work.pending()
    total = len(work.asked)
    if not pending:
        return Part(work.label, total, total)
    sample = pending[:SAMPLE]
    bodies = (work.row(id)["body"] for id in sample)
    found = estimate_here(bodies, home, len(pending) / len(sample), local_model=local_model)
    return _part(work.label, total, total - len(pending), found, 1.0)


def _part(label: str, requests: int, earlier: int, found: dict[str, Any], scale: float) -> Part:
    errors: list[dict[str, Any]] = found.get("errors") or []
    return Part(
        label=label,
        requests=requests,
        earlier=earlier,
        cached=None if found["cached"] is None else round(found["cached"] * scale),
        prompt_tokens=round(found["prompt_tokens"] * scale),
        completion_tokens=round(found["completion_tokens"] * scale),
        cost_nano=None if found["cost"] is None else round(int(found["cost"]) * scale),
        seconds=None,
        error=errors[0]["message"] if errors else None,
    )


def _judges(run: Run) -> Iterator[tuple[str, list[dict[str, Any]], int]]:
    """For each judge what it would be asked, with answers as long as they may get, and of how many."""
    from tailrace.evaluation.shapes import Answer

    for label, judge in run.grader.judges.items():
        bodies: list[dict[str, Any]] = []
        cells = [cell for cells in run.cells.values() for cell in cells.values()]
        for cell in itertools.islice(cells, SAMPLE):
            params = cell.arm.params
            tokens = int(params.get("max_completion_tokens") or params.get("max_tokens") or ANSWER_TOKENS)
            answer = Answer(cell.item, "x" * tokens * TOKEN_BYTES, run.asking.messages(cell))
            bodies.append(judge.request(answer))
        yield f"judge {label}", bodies, len(cells)


def _prompts(run: Run) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The first of each kind, as it would be sent."""
    from tailrace.evaluation.shapes import Answer

    seen: set[str] = set()
    for cells in run.cells.values():
        cell = next(iter(cells.values()))
        if cell.arm.prompt.name not in seen:
            seen.add(cell.arm.prompt.name)
            yield cell.arm.prompt.name, run.asking.messages(cell)
    cell = next(iter(next(iter(run.cells.values())).values()))
    for label, judge in run.grader.judges.items():
        answer = Answer(cell.item, "(the answer)", run.asking.messages(cell))
        yield f"judge {label}", judge.request(answer)["messages"]


def _print(
    parts: list[Part],
    prompts: list[tuple[str, list[dict[str, Any]]]],
    shape: tuple[int, int, int],
    configured: bool,
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from tailrace.evaluation.terminal import make_console

    console = make_console()
    items, arms, samples = shape
    what = f"{count(items, 'item')} × {count(arms, 'arm')} × {count(samples, 'sample')}"
    print(f"{what} = {count(items * arms * samples, 'request')}")
    table = Table(box=SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    table.add_column("")
    for title in ("requests", "answered before", "cached", "input tokens", "output tokens", "cost", "time"):
        table.add_column(title, justify="right")
    for part in parts:
        cells = [
            part.label,
            f"{part.requests:,}",
            f"{part.earlier:,}",
            "?" if part.cached is None else f"{part.cached:,}",
            f"about {part.prompt_tokens:,}",
            f"up to {part.completion_tokens:,}",
            "?" if part.cost_nano is None else f"up to {money(part.cost_nano)}",
            "?" if part.seconds is None else f"about {span(part.seconds)}",
        ]
        table.add_row(*map(Text, cells))
    console.print(table)
    known = [part.cost_nano for part in parts if part.cost_nano is not None]
    some = "" if len(known) == len(parts) else ", and what has no price"
    if known:
        print(f"in all up to {money(sum(known))}{some}")
    else:
        print("nobody knows what it costs: none of the models has a known price")
    if not configured:
        print("no server is configured, and only one knows what its cache has and how long it takes")
    for part in parts:
        if part.error:
            print(f"{part.label}: the server would refuse: {part.error}")
    for name, messages in prompts:
        print(f"\nthe first prompt of {name!r}:")
        for message in messages:
            print(f"  [{message['role']}] {message['content']}")
