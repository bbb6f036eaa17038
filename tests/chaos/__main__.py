"""``python -m tests.chaos``: load and faults for ten minutes, then the count. Exits 0 if everything was found once."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
from pathlib import Path

import uvloop
from rich.console import Console

from tests.chaos.faults import NAMES
from tests.chaos.report import show, write
from tests.chaos.run import FULL_SECONDS, FULL_WANTED, Options, more_files, run
from tests.chaos.stack import ChaosStack
from tests.support.processes import mark_environment


def options_of(arguments: list[str]) -> tuple[Options, Path | None, bool]:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=FULL_SECONDS, help="how long faults are injected")
    parser.add_argument("--seed", type=int, help="of shapes and faults; a new one where it is not given")
    parser.add_argument(
        "--completions", type=int, default=FULL_WANTED, help="how many are kept going at least"
    )
    parser.add_argument("--settle", type=float, default=120.0, help="seconds that the end may take")
    parser.add_argument("--json", type=Path, help="write the report here too")
    parser.add_argument("--no-faults", action="store_true", help="load alone")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="FAULT",
        help=f"inject this kind alone; may be repeated. Kinds: {', '.join(NAMES)}",
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs in any case")
    given = parser.parse_args(arguments)
    unknown = set(given.only) - set(NAMES)
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    options = Options(
        seed=random.SystemRandom().randrange(10**6) if given.seed is None else given.seed,
        seconds=given.seconds,
        wanted=given.completions,
        settle=given.settle,
        faults=not given.no_faults,
        only=frozenset(given.only),
    )
    return options, given.json, given.keep


def main() -> int:
    options, path, keep = options_of(sys.argv[1:])
    console = Console(width=None if sys.stdout.isatty() else 120)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    for name in [name for name in os.environ if name.startswith(("TAILRACE_", "CELERY_"))]:
        del os.environ[name]  # the stack's settings are its own
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    mark_environment()
    more_files()
    stack = ChaosStack()
    say(f"seed {options.seed}, {options.seconds:g} s, {options.wanted} completions; logs in {stack.folder}")
    remove = False
    try:
        try:
            stack.start()
            report = uvloop.run(run(options, stack, say))
        finally:
            left = stack.close()
        report.unmet += left
        report.tracebacks = stack.tracebacks()
        report.ok = report.ok and not left
        remove = report.ok and not keep
    finally:
        if remove:
            stack.remove()
        else:
            stack.keep_logs()
    show(report, console)
    if not remove:
        say(f"logs are kept in {stack.folder}")
    if path is not None:
        write(report, path)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
