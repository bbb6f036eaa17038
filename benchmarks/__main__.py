"""``make bench``: speed and size of Tailrace against its targets, beside a raw client, the ``openai`` SDK and LiteLLM.

It starts everything itself, on free ports and in a folder that goes with it: a fake backend, and Tailrace's gateway,
interactive worker, Valkey and SQLite as ``tailrace up`` has them. What is compared runs in turns, several times over,
and medians are shown: on a busy machine the numbers drift and the ratios stay.
"""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks import machine, profiler, report
from benchmarks.load import Load
from benchmarks.measures import FULL, MEASURES, QUICK, Effort, Run, say
from benchmarks.report import Report
from benchmarks.stack import Stack, kept_folder
from benchmarks.throughput import CHUNKS, PACED, Floods, Lane


def profile(run: Run, names: list[str], folder: Path, *, chunks: int, native: bool) -> None:
    """Tailrace at full load, a server under py-spy; the stacks go to files, a summary to standard output."""
    floods = Floods(run.stack, seconds=max(10.0, run.effort.seconds * 3))
    lane = Lane("tailrace", run.load, run.stack.tailrace, {**PACED, "chunks": chunks})

    def spies(seconds: float) -> list[profiler.Profiler]:
        pids = run.stack.pids
        return [
            run.exit.enter_context(profiler.Profiler(name, pids[name], seconds, folder, native=native))
            for name in names
        ]

    say(f"Tailrace with py-spy on {' and '.join(names)}")
    found = floods.run(lane, profile=spies)
    print(f"{found.rate:.1f} streams/s while profiled")
    for complaint in floods.complaints.values():
        print(complaint)
    for name in names:
        file = profiler.file_of(name, folder)
        print(f"\n{name}: {file}\n{profiler.summary(file.read_text())}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Speed and size, against the targets."
    )
    parser.add_argument("--quick", action="store_true", help="one short round of each: for a first look")
    parser.add_argument(
        "--only", action="append", choices=list(MEASURES), help="this measure; may be repeated"
    )
    parser.add_argument("--no-litellm", action="store_true", help="leave LiteLLM out, and its environment")
    parser.add_argument("--rounds", type=int, help="how often what is compared takes its turn")
    parser.add_argument("--seconds", type=float, help="how long a window of throughput is")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the results, with each round's, to a file"
    )
    parser.add_argument(
        "--profile",
        action="append",
        choices=["worker", "gateway"],
        help="measure nothing: run py-spy on this process while Tailrace is at full load; may be repeated",
    )
    parser.add_argument("--chunks", type=int, default=CHUNKS, help="with --profile: chunks of a stream")
    parser.add_argument("--native", action="store_true", help="with --profile: frames of C code too")
    parser.add_argument("--profile-dir", type=Path, metavar="DIR", help="where profiles go; .bench")
    return parser.parse_args()


def main() -> int:
    options = parse()
    effort = QUICK if options.quick else FULL
    effort = Effort(
        options.rounds or effort.rounds, options.seconds or effort.seconds, effort.requests, effort.resumes
    )
    signal.signal(signal.SIGTERM, _interrupted)
    facts = machine.facts()
    with ExitStack() as exit:
        say("starting the stack")
        stack = exit.enter_context(Stack())
        run = Run(effort, stack, exit.enter_context(Load()), exit, litellm=not options.no_litellm)
        if options.profile:
            profile(
                run,
                options.profile,
                options.profile_dir or kept_folder(),
                chunks=options.chunks,
                native=options.native,
            )
            return 0
        for name in options.only or MEASURES:
            try:
                MEASURES[name](run)
            except RuntimeError as error:
                run.failures.append(f"{name}: {error}")
                say(run.failures[-1])
    found = Report(machine=facts, rows=run.rows, rounds=report.rounded(run.rounds))
    report.show(found)
    if options.json:
        report.save(found, options.json)
    for failure in run.failures:
        print(f"benchmarks: {failure}", file=sys.stderr)
    return 1 if run.failures else 0


def _interrupted(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(f"signal {number}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(1)
