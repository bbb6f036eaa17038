"""Options that the commands of batches share."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from tailrace.batchinput.rendering import Renderer, Template
from tailrace.cli.batch.plan import Input

#: What a parameter can't be: rows say it.
_ROWS_OWN = frozenset({"messages", "model", "stream", "stream_options"})


def parameter(text: str) -> tuple[str, Any]:
    """``temperature=0`` → ``("temperature", 0)``; what is not JSON is a string. Raises typer.BadParameter."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.-]*", name):
        raise typer.BadParameter(f"{text!r} is not name=value, such as temperature=0")
    if name in _ROWS_OWN:
        other = "--model" if name == "model" else "the rows"
        raise typer.BadParameter(f"{name!r} is said by {other}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def window(text: str) -> str:
    """Raises typer.BadParameter."""
    if not re.fullmatch(r"[1-9][0-9]{0,4}[hd]", text):
        raise typer.BadParameter(f"{text!r} is no time such as 24h or 30d")
    return text


InputFile = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT", exists=True, dir_okay=False, help="Rows: JSON lines, or .csv, .tsv, .parquet."
    ),
]
Model = Annotated[str | None, typer.Option("--model", metavar="M", help="The model of all rows.")]
Params = Annotated[
    list[str] | None,
    typer.Option(
        "--param", metavar="NAME=VALUE", help="A parameter of all rows, as temperature=0; repeatable."
    ),
]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        "--template", metavar="FILE|TEXT", help="A Jinja2 template that makes the prompt from the columns."
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N rows.")]
SkipInvalid = Annotated[
    bool, typer.Option("--skip-invalid", help="Leave invalid rows out; they are in the error file.")
]
Window = Annotated[
    str, typer.Option("--window", metavar="TIME", parser=window, help="How long it may take: 24h, 30d.")
]
MaxConcurrency = Annotated[
    int | None, typer.Option("--max-concurrency", min=1, metavar="N", help="Rows under way at once.")
]
MaxErrorRate = Annotated[
    float | None,
    typer.Option(
        "--max-error-rate", min=0, max=1, metavar="SHARE", help="Stop when more than this share fails (0.5)."
    ),
]
Name = Annotated[str | None, typer.Option("--name", help="What the batch is called in lists.")]


def input_of(
    path: Path, model: str | None, params: list[str] | None, template: str | None, limit: int | None
) -> Input:
    """Raises TailraceError, typer.BadParameter."""
    values = dict(parameter(text) for text in params or ())
    made = Template(template) if template is not None else None
    return Input(path, Renderer(model=model, params=values, template=made), limit)


def settings_of(
    window: str, max_concurrency: int | None, max_error_rate: float | None, name: str | None
) -> dict[str, Any]:
    """Of the batch, as ``Batches.create`` takes them."""
    return {
        "completion_window": window,
        "max_concurrency": max_concurrency,
        "max_error_rate": max_error_rate,
        "metadata": {"name": name} if name else None,
    }
