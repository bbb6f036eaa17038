"""Two evaluation engines with Tailrace under them, each run twice: ``make engines``.

They run against the server of ``TAILRACE_URL``, else against a stack that lasts as long as they do, with a small model
on this CPU. By what a run was answered is read from the books, as the difference of two readings: on a server that
others use at the same time, their requests are counted too. What the engines write is in ``.tailrace/engines``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.console

import tailrace
from tailrace.cli import output, running
from tailrace.client import find_server
from tailrace.embedded.options import Options
from tailrace.embedded.stack import EmbeddedStack
from tailrace.errors import TailraceError

HERE = Path(__file__).parent
#: The commands below say paths from here, as a person would.
ROOT = HERE.parent.parent
RESULTS = ROOT / ".tailrace" / "engines"
INSPECT = """{bin}/inspect eval examples/engines/inspect_task.py --model openai-api/tailrace/{model}
    --log-dir {folder} --log-format json --display plain"""
_LM_EVAL_OPTIONS = """--model_args model={model} base_url={url}/v1/chat/completions num_concurrent=32
    --include_path examples/engines --apply_chat_template --output_path {folder}"""
LM_EVAL = "{bin}/lm-eval run --model local-chat-completions --tasks tailrace_questions " + _LM_EVAL_OPTIONS
LM_EVAL_REPEATS = (
    "{bin}/python examples/engines/harness.py run --model tailrace --tasks tailrace_questions_3 "
    + _LM_EVAL_OPTIONS
)
#: Answers to each question with ``--epochs``; lm_eval_repeats.yaml says the same.
EPOCHS = 3
#: What an engine says goes into this file of its folder.
OUTPUT = "output.txt"
#: Seconds until the books must have what an engine has got.
PATIENCE = 30.0
#: Lines of an engine's output that are shown when it fails.
TAIL = 30


class Failed(TailraceError):
    """An engine didn't do what it should; one line that says so, and what it said itself."""


@dataclass(frozen=True)
class Engine:
    name: str
    #: With {bin}, {model}, {url} and {folder} to be filled in.
    command: str
    accuracy: Callable[[Path], float]

    def words(self, **values: Any) -> list[str]:
        return [word.format(**values) for word in self.command.split()]


def engines(asked: argparse.Namespace) -> list[Engine]:
    inspect, lm_eval = INSPECT, LM_EVAL
    if asked.epochs:
        inspect, lm_eval = f"{INSPECT} --epochs {EPOCHS} -T temperature=0.7", LM_EVAL_REPEATS
    limit = f" --limit {asked.limit}" if asked.limit else ""
    return [
        Engine("inspect_ai", inspect + limit, inspect_accuracy),
        Engine("lm-eval", lm_eval + limit, lm_eval_accuracy),
    ]


def inspect_accuracy(folder: Path) -> float:
    (log,) = folder.glob("*.json")
    found: Any = json.loads(log.read_text("utf-8"))
    if found["status"] != "success":
        error: Any = found.get("error") or {"message": f"see {folder / OUTPUT}"}
        raise Failed(f"inspect_ai: {found['status']}: {error['message']}")
    return found["results"]["scores"][0]["metrics"]["accuracy"]["value"]


def lm_eval_accuracy(folder: Path) -> float:
    (results,) = folder.glob("*/results_*.json")
    (metrics,) = json.loads(results.read_text("utf-8"))["results"].values()
    (value,) = (value for name, value in metrics.items() if name.startswith("acc,"))
    return value


@dataclass(frozen=True)
class Books:
    """What has been asked for so far, and what of it the cache answered."""

    requests: int
    hits: int
    joins: int

    @classmethod
    async def read(cls, client: tailrace.Client) -> Books:
        rows = (await client.usage(start_time=0))["data"]
        fields = ("num_model_requests", "cache_hits", "cache_joins")
        return cls(*(sum(row[field] for row in rows) for field in fields))

    def since(self, before: Books) -> Books:
        return Books(self.requests - before.requests, self.hits - before.hits, self.joins - before.joins)

    @property
    def misses(self) -> int:
        return self.requests - self.hits - self.joins


async def settled(client: tailrace.Client, before: Books, requests: int) -> Books:
    """What came since ``before``, once so many requests are in the books. Raises Failed."""
    end = time.monotonic() + PATIENCE
    while (now := (await Books.read(client)).since(before)).requests < requests:
        if time.monotonic() > end:
            raise Failed(f"{requests} requests were expected, and the books have {now.requests}")
        await asyncio.sleep(0.1)
    return now


async def execute(name: str, command: list[str], log: Path, environment: dict[str, str]) -> None:
    """Run an engine to its end. Raises Failed."""
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if code:
        raise Failed(f"{name} ended with exit code {code}; all it said is in {log}\n{end_of(log)}")


def end_of(log: Path) -> str:
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-TAIL:])


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


async def compare(asked: argparse.Namespace, url: str, api_key: str) -> int:
    """Each engine twice, a line for each run, and the usage table. The exit code."""
    environment = {
        **os.environ,
        "TAILRACE_URL": url,
        "TAILRACE_API_KEY": api_key,
        "TAILRACE_BASE_URL": f"{url}/v1",  # inspect_ai's name for it
        "OPENAI_API_KEY": api_key,  # lm-eval's
        "HF_HOME": str(RESULTS / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
    questions = len((HERE / "questions.jsonl").read_text("utf-8").splitlines())
    requests = min(questions, asked.limit or questions) * (EPOCHS if asked.epochs else 1)
    console = rich.console.Console(highlight=False)
    console.print(f"\n{requests} requests a run to {asked.model} at {url}\n")
    console.print("[bold]engine       run   seconds   accuracy   asked of the model   from the books[/]")
    good = True
    async with tailrace.Client(url, api_key) as client:
        for engine in engines(asked):
            scores: list[float] = []
            for run in (1, 2):
                folder = emptied(RESULTS / f"{engine.name}-{run}")
                command = engine.words(bin=asked.bin, model=asked.model, url=url, folder=folder)
                before, started = await Books.read(client), time.monotonic()
                with console.status(f"{engine.name}, run {run}"):
                    await execute(engine.name, command, folder / OUTPUT, environment)
                took = time.monotonic() - started
                scores.append(engine.accuracy(folder))
                books = await settled(client, before, requests)
                given = books.hits + books.joins
                console.print(
                    f"{engine.name:10} {run:5} {took:9.1f} {scores[-1]:10.3f} {books.misses:20} {given:16}"
                )
            # With --epochs an answer may be cut at max_tokens, and such a one is not kept.
            good = good and (asked.epochs or (books.misses == 0 and scores[0] == scores[1]))
    console.print("\n[bold]tailrace usage --since 1h[/]")
    usage = [sys.executable, "-m", "tailrace", "usage", "--since", "1h"]
    await asyncio.to_thread(subprocess.run, usage, env=environment, check=True)
    console.print(f"\nlogs and results: {RESULTS}", soft_wrap=True)
    if not good:
        output.warn("the second run should have been answered from the books alone, with the same accuracy")
    return 0 if good else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bin", default=".venv-engines/bin", help="where the engines are installed")
    parser.add_argument("--model", default="smollm2", help="the model to ask (default: smollm2)")
    parser.add_argument("--limit", type=int, help="only the first so many questions")
    parser.add_argument(
        "--epochs",
        action="store_true",
        help=f"{EPOCHS} answers to each question at temperature 0.7, each of its own",
    )
    return parser.parse_args()


def main() -> int:
    asked = arguments()
    if os.environ.get("TAILRACE_URL"):
        url, api_key = find_server(None, None)
        return asyncio.run(compare(asked, url.rstrip("/"), api_key))
    with tempfile.TemporaryDirectory(prefix="tailrace-engines-") as home:
        options = Options(
            home=Path(home),
            say=output.say,
            warn=output.warn,
            port=0,
            flower=False,
            local_model=True,
            environment={k: v for k, v in os.environ.items() if not k.startswith("TAILRACE_")},
        )

        async def use(stack: EmbeddedStack) -> int:
            return await compare(asked, stack.connection.url, stack.connection.api_key)

        code = asyncio.run(running.run(EmbeddedStack(options), use))
    output.say("everything is stopped")
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TailraceError as error:
        print(f"tailrace: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(running.INTERRUPTED)
