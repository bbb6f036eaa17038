"""The ``tailrace`` command.

Exit codes: 0 all well, 1 failed, 2 usage, 3 finished with failed rows, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any, NoReturn

import typer

import tailrace
from tailrace.cli import batch, cache, cancel, demo, doctor, evaluate, keys, migrate, prune, tail, up, usage
from tailrace.cli.output import close_output, warn
from tailrace.errors import Problems

app = typer.Typer(
    name="tailrace",
    help="Queue LLM completions, follow their chunk streams, resume them from any index.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("up")(up.up)
app.command("demo")(demo.demo)
app.command("tail")(tail.tail)
app.command("cancel")(cancel.cancel)
app.command("usage")(usage.usage)
app.command("migrate")(migrate.migrate)
app.command("prune")(prune.prune)
app.command("doctor")(doctor.doctor)
app.add_typer(batch.app, name="batch")
app.add_typer(evaluate.app, name="eval")
app.add_typer(keys.app, name="keys")
app.add_typer(cache.app, name="cache")


def _version(asked: bool) -> None:
    if asked:
        print(f"tailrace {tailrace.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command line and exit. What a user can mend is one line on standard error, or several where a file has
    several things wrong."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that can't show a character shows another one
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    try:
        result: Any = app(arguments, prog_name="tailrace", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except Problems as error:
        for line in str(error).splitlines():
            warn(line)
        return 1
    except tailrace.TailraceError as error:
        return _complain(str(error), 1)
    except typer.TyperException as error:
        message = error.format_message()
        return _complain(f"{message} Try: tailrace --help", error.exit_code) if message else error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        close_output()
        return 0


def _complain(message: str, code: int) -> int:
    warn(message)
    return code
