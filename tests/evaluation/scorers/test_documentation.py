"""The examples of ``docs/scorers.md`` hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailrace.evaluation import suite
from tests.evaluation.scorers.answers import CAPITALS, value

DOCUMENT = Path(__file__).parents[3] / "docs" / "scorers.md"
SPECS: dict[str, suite.Scorer] = {
    "exact": suite.Exact(),
    "includes": suite.Includes(),
    "choice": suite.Choice(choices="choices"),
    "numeric": suite.Numeric(),
    "f1": suite.F1(),
    "json_schema": suite.JsonSchema(schema={"required": ["n"], "properties": {"n": {"type": "integer"}}}),
}


def examples() -> Iterator[tuple[str, dict[str, str]]]:
    """Each row of a table that ends with a column ``score``: its scorer, and its cells by column."""
    scorer, columns = "", []
    for line in DOCUMENT.read_text("utf-8").splitlines():
        if line.startswith("## "):
            scorer, columns = line.strip("# `"), []
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and cells[-1] == "score":
            columns = cells
        elif not cells:
            columns = []
        elif columns and not set(cells[0]) <= {"-"}:
            yield scorer, dict(zip(columns, map(_plain, cells), strict=True))


def _plain(cell: str) -> str:
    ticks = re.match("`*", cell)
    assert ticks is not None
    inner = cell[ticks.end() : len(cell) - ticks.end()]
    return (inner.strip() if ticks.end() > 1 else inner).replace("\\n", "\n").replace("\\|", "|")


EXAMPLES = list(examples())


def test_the_document_has_examples_of_each_scorer() -> None:
    assert {scorer for scorer, _ in EXAMPLES} == {*SPECS, "regex"}
    assert len(EXAMPLES) > 45


@pytest.mark.parametrize(("scorer", "cells"), EXAMPLES, ids=[cells["answer"] for _, cells in EXAMPLES])
def test_examples(scorer: str, cells: dict[str, str]) -> None:
    spec = suite.Regex(pattern=cells["pattern"]) if scorer == "regex" else SPECS[scorer]
    targets = [cells["target"]] if "target" in cells else []
    assert value(spec, cells["answer"], *targets, choices=CAPITALS) == pytest.approx(float(cells["score"]))
