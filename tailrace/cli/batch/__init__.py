"""``tailrace batch``: many completions from one file."""

from __future__ import annotations

import typer

from tailrace.cli.batch import look, run

app = typer.Typer(
    no_args_is_help=True,
    help="Many completions from one file, resumable and paid for once.",
    rich_markup_mode=None,
)
app.command("run")(run.run)
app.command("submit")(run.submit)
app.command("watch")(look.watch)
app.command("list")(look.list_batches)
app.command("show")(look.show)
app.command("results")(look.results)
app.command("cancel")(look.cancel)
app.command("retry")(look.retry)
