"""A run's summary on terminals of any width, and in a pipe."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console

from tailrace.evaluation import terminal
from tailrace.evaluation.comparison import ArmComparison, Change, RunComparison
from tailrace.evaluation.figures import Estimate, Figures
from tailrace.evaluation.shapes import Outcome, Sample, Score
from tests.support.evaluation import Run, made_run


def shown(run: Run, width: int | None = None) -> str:
    """In a pipe where there is no width."""
    file = io.StringIO()
    if width is None:
        console = terminal.make_console(file)
    else:
        console = Console(file=file, width=width, force_terminal=True, color_system=None)
    terminal.summary(run.info, run.figures, console, report="runs/1/report.html")
    return file.getvalue()


def test_a_pipe_gets_plain_columns_with_all_that_there_is() -> None:
    run = made_run()
    lines = shown(run).splitlines()
    head = next(line for line in lines if line.startswith("numeric"))
    names = "numeric score 95% pass@2 right wrong truncated refused error cost p50 p90 tok/s cached"
    assert head.split() == names.split()
    row = next(line for line in lines if line.startswith("acme:large-2")).split()
    verdicts = run.figures.arms[0].scorers["numeric"].verdicts
    assert row[4:9] == [str(verdicts[name]) for name in ("right", "wrong", "truncated", "refused", "error")]
    assert "report: runs/1/report.html" in lines
    assert any(
        line.startswith("judge judge (acme:judge-large): 711 graded, 9 failed, $0.412") for line in lines
    )
    assert not any("─" in line for line in lines)


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_tables_fit_the_terminal(width: int) -> None:
    """Columns that there is no room for are left out, and none is cut."""
    text = shown(made_run(arms=5), width)
    tables = [line for line in text.splitlines() if line.startswith(" ")]
    assert tables
    assert max(map(cell_len, tables)) <= width
    assert "…" not in text


def test_on_a_narrow_terminal_the_rarer_verdicts_are_one_count() -> None:
    run = made_run()
    verdicts = run.figures.arms[0].scorers["judge"].verdicts
    rest = sum(count for name, count in verdicts.items() if name not in {"right", "wrong"})
    table = shown(run, 80).split(" judge ")[1].splitlines()
    assert table[0].split()[:5] == ["score", "95%", "right", "wrong", "other"]
    row = next(line for line in table if "acme:large-2" in line).split()
    assert row[3:6] == [str(verdicts["right"]), str(verdicts["wrong"]), str(rest)]


@pytest.mark.parametrize("width", [None, 80])
def test_names_are_no_markup_and_no_orders(width: int | None) -> None:
    run = made_run(arms=2, items=20)
    names = ["[red]x[/x] [/]", "名前\x1b[31m\n\ud800:smile:"]
    arms = [
        msgspec.structs.replace(arm, key=name, model=name, errors={"[/bold]": 1})
        for arm, name in zip(run.figures.arms, names, strict=True)
    ]
    pairs = [msgspec.structs.replace(pair, a=names[0], b=names[1]) for pair in run.figures.pairs]
    info = msgspec.structs.replace(run.info, suite="[/suite]", reason="[red]")
    text = shown(Run(info, msgspec.structs.replace(run.figures, arms=arms, pairs=pairs), []), width)
    assert "[red]x[/x] [/]" in text
    assert "名前" in text
    assert ":smile:" in text
    assert "[/suite]" in text
    assert "[31m" not in text.replace("�[31m", "")
    text.encode()


def test_a_scorer_may_have_the_name_of_a_column() -> None:
    run = made_run(items=20)
    arms = [
        msgspec.structs.replace(arm, scorers={"cached": arm.scorers["numeric"], "cost": arm.scorers["judge"]})
        for arm in run.figures.arms
    ]
    figures = Figures(arms, [], [], 20, 120)
    info = msgspec.structs.replace(run.info, scorers=["cached", "cost"])
    for width in (None, 60):
        text = shown(Run(info, figures, []), width)
        assert text.count("acme:large-2") >= 4


def test_many_pairs_are_for_the_report() -> None:
    run = made_run(arms=5, items=20)
    pairs = [pair for pair in run.figures.pairs if pair.scorer == "numeric"]
    more = [*pairs, *pairs]
    text = shown(Run(run.info, msgspec.structs.replace(run.figures, pairs=more), []))
    assert "and 10 more pairs, which the report shows" in text


def test_a_run_without_figures_is_said_to_have_none() -> None:
    run = made_run(items=1)
    assert "No sample has a score yet." in shown(Run(run.info, Figures([], [], [], 0, 0), []))


# -------------------------------------------------------------------------------------------- two runs, compared


def _sample(item: str, text: str, value: float | None, answer: str | None = None) -> Sample:
    scores = {} if value is None else {"numeric": Score(value, answer)}
    return Sample("k", "m", "p", item, 0, None, Outcome.ANSWERED, text, scores=scores)


def _change(
    item: str, a: float | None, b: float | None, text: str = "then", answer: str | None = None
) -> Change:
    """Each run has a sample more, which came out the same way in both."""
    before = [_sample(item, "the same", 0.5), _sample(item, "as it was", a)]
    after = [_sample(item, "the same", 0.5), _sample(item, text, b, answer)]
    return Change(item, None, a, b, before, after)


def _compared(run: Run, **lists: Any) -> RunComparison:
    figures = run.figures.pairs[0]
    score = Estimate(0.75, 0.7, 0.8, 30, 60, "t")
    empty: dict[str, list[Any]] = {
        name: [] for name in ("regressions", "improvements", "lost", "gained", "only_a", "only_b")
    }
    arm = ArmComparison("k1", "k2", figures, score, None, unchanged=0, **{**empty, **lists})
    return RunComparison("numeric", [arm], ["[old]"], [])


def _compare(found: RunComparison, width: int = 200, items: int = 20) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=False)
    terminal.comparison("run-1", "run-2", found, console, items=items)
    return file.getvalue()


def test_two_runs_are_shown_with_regressions_first() -> None:
    found = _compared(
        made_run(items=20),
        improvements=[_change("q-9", 0.0, 1.0)],
        regressions=[_change("q-[7]", 1.0, 0.0, "It is 12.", "12"), _change("q-8", 1.0, 0.25)],
        lost=[_change("q-5", 1.0, None)],
        only_b=["q-100"],
    )
    lines = [line.rstrip() for line in _compare(found).splitlines()]
    assert lines[0] == "run-2 against run-1, by numeric"
    worse, gone, better = (
        lines.index(f"k1 → k2: {what}")
        for what in ("2 items worse", "1 item without a score now", "1 item better")
    )
    assert worse < gone < better
    assert lines[worse + 2].split() == ["q-[7]", "as", "it", "was", "12", "100%", "0%"]
    assert lines[worse + 3].split() == ["q-8", "as", "it", "was", "then", "100%", "25.0%"]
    assert lines[gone + 2].split()[-2:] == ["100%", "–"]
    assert lines[better + 2].split() == ["q-9", "as", "it", "was", "then", "0%", "100%"]
    assert "k1 → k2: 1 item new" in lines
    assert "only in run-1: [old]" in lines


def test_of_many_changes_the_first_are_shown() -> None:
    found = _compared(made_run(items=20), regressions=[_change(f"q-{n}", 1.0, 0.0) for n in range(30)])
    text = _compare(found, items=3)
    assert "30 items worse, the first 3" in text
    assert "q-2 " in text
    assert "q-3 " not in text


@pytest.mark.parametrize("width", [60, 80])
def test_a_long_answer_is_cut_at_its_beginning(width: int) -> None:
    found = _compared(
        made_run(items=20), regressions=[_change("q-1", 1.0, 0.0, "so " * 90 + "\n\nit is 12.")]
    )
    text = _compare(found, width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "it is 12." in " ".join(text.split())


def test_why_requests_and_scorers_failed_is_told() -> None:
    run = made_run(items=3, arms=1)
    (arm,) = run.figures.arms
    scorer = run.info.scorers[0]
    own = msgspec.structs.replace(
        arm.scorers[scorer],
        verdicts={"right": 1, "unscored": 1200},
        unscored="ValueError: no\n number (mine.py:3)",
    )
    failed = msgspec.structs.replace(
        arm,
        errors={"rate_limited": 3, "gone": 1},
        messages={"rate_limited": "too " * 100},
        scorers={**arm.scorers, scorer: own},
    )
    text = shown(Run(run.info, msgspec.structs.replace(run.figures, arms=[failed]), run.rows))
    lines = text.splitlines()
    assert f"{scorer} failed on 1,200, first: ValueError: no number (mine.py:3)" in lines
    (told,) = (line for line in lines if "rate_limited 3" in line)
    assert told.startswith(f"errors of {arm.key}: rate_limited 3, first: too too")
    assert told.endswith("…")
    assert f"errors of {arm.key}: gone 1" in lines
