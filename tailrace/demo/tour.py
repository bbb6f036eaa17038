"""The steps of the tour, against any running Tailrace."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import tailrace
from tailrace.demo import questions
from tailrace.demo.answers import Answer

#: The connection is dropped after so many chunks.
CUT_AFTER = 8


async def tour(
    client: tailrace.Client, rows: list[questions.Question], results: Path, console: Console
) -> bool:
    """Returns whether every question was answered and every stream was whole. Raises TailraceError."""
    started = time.monotonic()
    first = await Answer.submit(client, rows[0])
    answers = [first, *await asyncio.gather(*(Answer.submit(client, row) for row in rows[1:]))]
    took = (time.monotonic() - started) * 1000
    console.print(f"\n[bold]{len(answers)} questions queued[/] in {took:.0f} ms")
    followers = [asyncio.create_task(answer.follow()) for answer in answers]
    try:
        await _live(answers[0], console)
        whole = await _cut(answers[len(answers) // 2], console)
        await _rest(followers, console)
    finally:
        for follower in followers:
            follower.cancel()
        await asyncio.gather(*followers, return_exceptions=True)
    questions.save(results, [answer.row() for answer in answers])
    console.print()
    console.print(_usage(answers))
    console.print(f"results: {results}", highlight=False, soft_wrap=True)
    for answer in answers:
        if answer.error:
            console.print(f"{answer.question.custom_id}: {answer.error}", style="red", markup=False)
    return whole and all(answer.status == "completed" for answer in answers)


async def _live(answer: Answer, console: Console) -> None:
    """One answer, token by token."""
    _heading(console, "live", answer)
    try:
        async for chunk in answer.completion.chunks():
            console.out(chunk.text, end="", highlight=False)
    except tailrace.CompletionError as error:
        console.print(str(error), style="red", markup=False)
    console.print()


async def _cut(answer: Answer, console: Console) -> bool:
    """A stream that loses its connection and goes on behind the last index; then the whole once more."""
    _heading(console, "cut and resumed, each chunk with its index", answer)
    seen: list[tuple[int, str]] = []

    async def read(after: int, count: int | None) -> None:
        async with aclosing(answer.completion.chunks(after)) as chunks:
            async for chunk in chunks:
                seen.append((chunk.index, chunk.text))
                console.out(f"[{chunk.index}]", end="", style="dim", highlight=False)
                console.out(chunk.text, end="", highlight=False)
                if count is not None and len(seen) >= count:
                    return

    try:
        await read(-1, CUT_AFTER)
        last = seen[-1][0] if seen else -1
        console.print(f"\n[yellow]connection dropped after index {last}; resuming with after={last}[/]")
        await read(last, None)
        replayed = [(chunk.index, chunk.text) async for chunk in answer.completion.chunks()]
    except tailrace.CompletionError as error:
        console.print(f"\n{error}", style="red", markup=False)
        return False
    gapless = [index for index, _ in seen] == list(range(len(seen)))
    same = replayed == seen
    console.print(
        f"\n{_mark(gapless)} indexes 0 to {len(seen) - 1}, {'no' if gapless else 'with a'} gap or repeat   "
        f"{_mark(same)} a replay from the start is {'the same' if same else 'not the same'}"
    )
    return gapless and same


async def _rest(followers: list[asyncio.Task[None]], console: Console) -> None:
    """Wait for all answers, and say how it goes."""
    console.print()
    done = sum(follower.done() for follower in followers)
    columns = (TextColumn("answered"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("answered", total=len(followers), completed=done)
        if not console.is_terminal:
            console.print(f"answered {done}/{len(followers)}", highlight=False)
        for follower in asyncio.as_completed([follower for follower in followers if not follower.done()]):
            await follower
            done += 1
            progress.update(bar, completed=done)
            if not console.is_terminal:
                console.print(f"answered {done}/{len(followers)}", highlight=False)
    for follower in followers:
        follower.result()


def _usage(answers: list[Answer]) -> Table:
    table = Table(
        show_footer=True, caption="tokens; milliseconds since the submission, as the reader saw them"
    )
    good = sum(answer.status == "completed" for answer in answers)
    table.add_column("question", f"all {len(answers)}")
    table.add_column("status", f"{good} good")
    for kind in ("prompt", "completion"):
        table.add_column(kind, str(sum(answer.tokens(kind) for answer in answers)), justify="right")
    table.add_column("first text", justify="right")
    table.add_column("whole", _ms(max(answer.duration_ms or 0 for answer in answers)), justify="right")
    for answer in answers:
        table.add_row(
            answer.question.custom_id,
            answer.status,
            str(answer.tokens("prompt")),
            str(answer.tokens("completion")),
            _ms(answer.first_chunk_ms),
            _ms(answer.duration_ms),
        )
    return table


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _mark(good: bool) -> str:
    return "[green]ok[/]" if good else "[red]WRONG[/]"


def _heading(console: Console, what: str, answer: Answer) -> None:
    console.print(f"\n[bold]{what}[/]")
    console.print(f"> {answer.question.text}", style="cyan", markup=False, highlight=False)
