"""Runs a suite through make; tests that fail are tried again alone. ``suite.py test PYTHON=… ARGS=…``

With three processes on two cores, servers that are killed and clocks that run, a test fails now and then by the load of
the machine alone. So up to MOST tests that fail get up to TRIES more, without company. One that fails each time fails
the run, and so does whatever a try of one test says nothing about: a process that died, an error at collection, what
many tests share. Every outcome stays in the output, and each that was not the last is told at the end, in this suite
and in those after it ($CI_TOLD is the file).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

#: Tests that are tried again, and how often.
MOST, TRIES = 10, 2
#: For a whole suite, which takes some ten minutes: a hang is to end while there is time to read about it.
LIMIT_SECONDS = 2400
#: Of pytest: tests ran, and some failed.
TESTS_FAILED = 1


def main(arguments: list[str]) -> int:
    given = [argument for argument in arguments if not argument.startswith("ARGS=")]
    args = next((argument[5:] for argument in arguments if argument.startswith("ARGS=")), "")
    with tempfile.TemporaryDirectory(prefix="ci-suite-") as folder:
        told = Path(os.environ.get("CI_TOLD") or f"{folder}/told")
        names = Path(folder, "names")
        ids: list[str] = []
        for attempt in range(1 + TRIES):
            if attempt:
                names.write_text("".join(f"{id}\n" for id in ids))
                print(f"\n== {len(ids)} failed: again, alone ({attempt} of {TRIES})", flush=True)
            again = ["JOBS=0"] if attempt else []
            outcome = run(
                [*given, *again], f"{args} @{names}" if attempt else args, Path(folder, "outcomes"), told
            )
            if outcome is None:
                return 0
            why = final(outcome, ids)
            if why:
                print(f"\n== not tried again: {why}", flush=True)
                return 1
            ids = list(outcome["failed"])
            if attempt < TRIES:
                where = "alone" if attempt else "among the others"
                with told.open("a") as file:
                    file.writelines(f"{' '.join(given)}: {id} failed {where}\n" for id in ids)
        print(f"\n== failed {1 + TRIES} times: {', '.join(ids)}", flush=True)
        return 1


def run(given: list[str], args: str, outcomes: Path, told: Path) -> dict[str, Any] | None:
    """None where all is well; else what pytest tells, which is nothing where it did not come to its end."""
    outcomes.unlink(missing_ok=True)
    # With a blank in place of =, pytest would take a file that is there for one with tests, and look for its settings
    # from there.
    plugin = f"-p tests.support.outcomes --outcomes={outcomes} --told={told}"
    command = [
        "timeout",
        "--kill-after=60",
        str(LIMIT_SECONDS),
        "make",
        *given,
        f"ARGS={plugin} {args}".rstrip(),
    ]
    sys.stdout.flush()
    status = subprocess.run(command, check=False).returncode
    found: dict[str, Any] = json.loads(outcomes.read_text()) if outcomes.exists() else {}
    return None if status == 0 == found.get("exit") else found


def final(outcome: dict[str, Any], asked: list[str]) -> str:
    """Why nothing is tried again, empty where it is."""
    if not outcome:
        return "pytest did not come to its end"
    if outcome["final"]:
        return "; ".join(outcome["final"])
    if outcome["exit"] != TESTS_FAILED or not outcome["failed"]:
        return f"pytest's exit code is {outcome['exit']}"
    if len(outcome["failed"]) > MOST:
        return f"{len(outcome['failed'])} failed, more than {MOST}"
    if asked and not set(outcome["failed"]) <= set(asked):
        return "others failed than were asked for"
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
