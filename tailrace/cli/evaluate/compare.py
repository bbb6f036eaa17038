"""``tailrace eval compare``: two runs on the items that both have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailrace.cli.evaluate.options import Runs
from tailrace.cli.options import Json
from tailrace.cli.output import warn
from tailrace.errors import TailraceError

if TYPE_CHECKING:
    from tailrace.evaluation.folder import Folder


def compare(
    a: Annotated[str, typer.Argument(metavar="RUN_A", help="The run to compare with.")],
    b: Annotated[str, typer.Argument(metavar="RUN_B", help="The run that may be better or worse.")],
    scorer: Annotated[
        str | None, typer.Option("--scorer", metavar="NAME", help="By this one (default: the first of both).")
    ] = None,
    changes: Annotated[
        int, typer.Option("--changes", metavar="N", min=0, help="Changed items that are shown of each model.")
    ] = 20,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Compare two runs item by item: who won where, regressions first."""
    import msgspec

    from tailrace.evaluation import comparison, outputs, terminal
    from tailrace.evaluation import folder as folders

    first, second = folders.find(runs, a), folders.find(runs, b)
    name = _scorer(first, second, scorer)
    found = comparison.compare_runs(outputs.samples_of(first), outputs.samples_of(second), name)
    changed = _changed(first, second)
    if as_json:
        told = {"a": first.manifest.id, "b": second.manifest.id, "scorer": name, "changed_items": changed}
        print(json.dumps(told | msgspec.to_builtins(found, str_keys=True)))
        return
    if changed:
        one = len(changed) == 1
        same = f"{len(changed):,} {'item has' if one else 'items have'} the same id in both runs, but not the same"
        warn(f"{same} input and target, such as {changed[0]!r}: is it the same dataset?")
    ids = first.manifest.id, second.manifest.id
    terminal.comparison(*ids, found, terminal.make_console(), items=changes)


def _changed(first: Folder, second: Folder) -> list[str]:
    """Ids that the runs share, of items that are not the same. Nothing is known of a run without its items."""
    from tailrace.evaluation import dataset
    from tailrace.evaluation.folder import ITEMS

    if first.manifest.fingerprint == second.manifest.fingerprint:
        return []
    try:
        before, after = (
            {item.id: (item.input, item.targets) for item in dataset.read_written(folder.path / ITEMS)}
            for folder in (first, second)
        )
    except TailraceError:
        return []
    return [id for id, item in before.items() if id in after and after[id] != item]


def _scorer(first: Folder, second: Folder, asked: str | None) -> str:
    """Raises TailraceError where the runs have none in common."""
    from tailrace.evaluation.outputs import read_summary

    names: list[list[str]] = []
    for folder in (first, second):
        summary = read_summary(folder.path)
        if summary is None:
            raise TailraceError(f"{folder.manifest.id} has no results yet")
        names.append(summary.run.scorers)
    both = [name for name in names[0] if name in names[1]]
    if asked is not None and asked not in both:
        raise TailraceError(f"--scorer: not both runs have {asked!r}; they have {', '.join(both) or 'none'}")
    if not both:
        raise TailraceError("the runs have no scorer in common: see `tailrace eval rescore`")
    return asked or both[0]
