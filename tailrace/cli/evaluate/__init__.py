"""``tailrace eval``: a dataset × models × prompts × samples, asked, scored and reported."""

from __future__ import annotations

import importlib.util

import typer

from tailrace.cli.evaluate import compare, look, rescore, run
from tailrace.errors import TailraceError

#: What the extra brings that nothing else does.
_NEEDED = ("scipy", "numpy", "pyarrow", "ruamel.yaml", "jsonschema")

app = typer.Typer(
    no_args_is_help=True,
    help="Evaluation runs: models side by side on a dataset, scored and reported.",
    rich_markup_mode=None,
)
app.command("run")(run.run)
app.command("resume")(run.resume)
app.command("list")(look.list_runs)
app.command("show")(look.show)
app.command("compare")(compare.compare)
app.command("rescore")(rescore.rescore)


@app.callback()
def _needs_its_extra() -> None:
    if not all(map(_is_there, _NEEDED)):
        raise TailraceError("evaluation takes some more packages: pip install 'tailrace[eval]'")


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a package around it
        return False
