"""A run's figures for a terminal: tables with lines there, plain columns in a pipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

from tailrace.evaluation import formats, standing
from tailrace.evaluation.comparison import ArmComparison, RunComparison
from tailrace.evaluation.figures import Figures, PairFigures, RunInfo
from tailrace.evaluation.shapes import Outcome, Sample, Verdict
from tailrace.evaluation.standing import Named

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

#: The column of labels.
ARM = "arm"
#: Pairs that are shown for a scorer; the report has all of them.
PAIRS = 10
#: Items of each kind of change between two runs, and characters of an answer to one of them.
CHANGES, ANSWER = 20, 32
#: Characters of why something failed.
REASON = 200
#: Kinds of changes for the worse.
WORSE = ("worse", "without a score now")
#: Counts that have a column where there are any; on a narrow terminal, one together.
REST = tuple(verdict.value for verdict in Verdict if verdict not in {Verdict.RIGHT, Verdict.WRONG})
#: Columns where nobody looks at them: nothing is wrapped.
WIDE = 1000


def make_console(file: TextIO | None = None) -> Console:
    """For standard output, or a file; as wide as the terminal, and in a pipe as wide as need be."""
    import rich.console

    console = rich.console.Console(file=file, highlight=False)
    return console if console.is_terminal else rich.console.Console(file=file, highlight=False, width=WIDE)


def summary(info: RunInfo, figures: Figures, console: Console, *, report: str | None = None) -> None:
    """What became of the run, a table for each scorer, comparisons, judges, and where the report is."""
    _say(
        console,
        f"{info.suite}  {info.id}  {info.status}" + (f": {info.reason}" if info.reason else ""),
        "bold",
    )
    took = "" if figures.seconds is None else f" in {formats.duration(figures.seconds * 1000)}"
    _say(
        console,
        f"{formats.count(figures.samples, 'sample')} of {_items(figures.items)}{took}, paid {formats.total(figures)}",
    )
    for scorer in info.scorers:
        console.print()
        console.print(_scores(figures, scorer, console))
        _unscored(figures, scorer, console)
        _say(console, standing.headline(figures, scorer))
        _pairs(figures, scorer, console)
    if figures.judges:
        console.print()
    for judge in figures.judges:
        failed = f", {judge.failed:,} failed" if judge.failed else ""
        took = f"{judge.graded:,} graded{failed}, {formats.judge_cost(judge)}"
        _say(console, f"judge {judge.scorer} ({judge.model}): {took}")
    _errors(figures, console)
    if report is not None:
        console.print()
        _say(console, f"report: {report}")


def _scores(figures: Figures, scorer: str, console: Console) -> Table:
    """The columns that there is room for; the report has all of them."""
    arms = [arm for arm in standing.ranking(figures, scorer) if scorer in arm.figures.scorers]
    columns = _columns(arms, scorer)
    for less in (("cached",), ("tok/s",), ("p90",), ("pass@",), REST, ("p50",), ("cost",)):
        if _width(columns, console) > console.width:
            columns = _without(columns, less)
    return table(columns, console, head=scorer)


def _columns(arms: list[Named], scorer: str) -> dict[str, list[str]]:
    """Name → cells, the arms' labels first. Counts that are nowhere have no column; right and wrong always have."""
    own = [arm.figures for arm in arms]
    found = [arm.scorers[scorer] for arm in own]
    columns = {ARM: [arm.label for arm in arms]}
    columns["score"] = [formats.score(f.score) for f in found]
    columns["95%"] = [formats.interval(f.score) or formats.NONE for f in found]
    most = max((k for f in found for k in f.pass_at), default=1)
    if most > 1:
        columns[f"pass@{most}"] = [formats.score(f.pass_at.get(most)) for f in found]
    for name in (verdict.value for verdict in Verdict):
        counts = [f.verdicts.get(name, 0) for f in found]
        if any(counts) or name not in REST:
            columns[name] = [f"{count:,}" for count in counts]
    columns["cost"] = [formats.answer_cost(arm) for arm in own]
    columns["p50"] = [formats.duration(arm.duration and arm.duration.p50) for arm in own]
    columns["p90"] = [formats.duration(arm.duration and arm.duration.p90) for arm in own]
    columns["tok/s"] = [formats.rate(arm.tokens_per_second) for arm in own]
    hits = [arm.cache.get("hit", 0) + arm.cache.get("join", 0) for arm in own]
    if any(hits):
        columns["cached"] = [f"{count:,}" for count in hits]
    return columns


def _without(columns: dict[str, list[str]], names: tuple[str, ...]) -> dict[str, list[str]]:
    """Less of them: those whose names begin so are left out, and counts are added up."""
    left = {name: cells for name, cells in columns.items() if not name.startswith(names)}
    counts = [cells for name, cells in columns.items() if name in REST and name in names]
    if not counts:
        return left
    others = [f"{sum(int(cell.replace(',', '')) for cell in row):,}" for row in zip(*counts, strict=True)]
    names_left = list(left)
    at = names_left.index(Verdict.WRONG.value) + 1
    return {
        name: others if name == "other" else left[name]
        for name in (*names_left[:at], "other", *names_left[at:])
    }


def _pairs(figures: Figures, scorer: str, console: Console) -> None:
    """The surest differences first; those beyond chance have a star. One pair is in the headline already."""
    pairs = standing.comparisons(figures, scorer)
    if len(pairs) < 2:
        return
    labels = formats.labels(figures)
    shown = pairs[:PAIRS]
    columns = {
        "ahead": [labels.get(pair.b, pair.b) for pair in shown],
        "behind": [labels.get(pair.a, pair.a) for pair in shown],
        **pair_columns(shown),
    }
    for less in ("won/lost/tied", "95%"):
        if _width(columns, console) > console.width:
            del columns[less]
    console.print()
    console.print(table(columns, console, texts=2))
    if len(pairs) > PAIRS:
        _say(console, f"and {len(pairs) - PAIRS} more pairs, which the report shows")


def pair_columns(pairs: list[PairFigures]) -> dict[str, list[str]]:
    """Name → cells: points, interval, items won, lost and tied, and p with a star where chance hardly explains it."""
    return {
        "points": [formats.points(pair.difference.mean) for pair in pairs],
        "95%": [formats.points_interval(pair.difference) or formats.NONE for pair in pairs],
        "won/lost/tied": [f"{pair.wins:,}/{pair.losses:,}/{pair.ties:,}" for pair in pairs],
        "p adjusted": [
            formats.chance(pair.p_adjusted) + (" *" if standing.is_sure(pair) else "  ") for pair in pairs
        ],
    }


def table(
    columns: dict[str, list[str]], console: Console, *, texts: int = 1, head: str | None = None
) -> Table:
    """Lines on a terminal, plain columns elsewhere. The first ``texts`` columns are texts, which may be folded;
    ``head`` is what to call the first of them."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    for place, name in enumerate(columns):
        if place < texts:
            made.add_column(_plain(name if place or head is None else head), overflow="fold")
        else:
            made.add_column(_plain(name), justify="right", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        made.add_row(*map(_plain, row))
    return made


def _width(columns: dict[str, list[str]], console: Console) -> int:
    from rich.cells import cell_len

    gap, edges = (3, 2) if console.is_terminal else (2, 0)
    return sum(max(map(cell_len, (name, *cells))) + gap for name, cells in columns.items()) - gap + edges


def _unscored(figures: Figures, scorer: str, console: Console) -> None:
    """Why the scorer failed, by the first answer on which it did."""
    found = [arm.scorers[scorer] for arm in figures.arms if scorer in arm.scorers]
    count = sum(each.verdicts.get(Verdict.UNSCORED.value, 0) for each in found)
    why = next((each.unscored for each in found if each.unscored), None)
    if count and why:
        _say(console, f"{scorer} failed on {count:,}, first: {_short(why)}")


def _errors(figures: Figures, console: Console) -> None:
    for arm in standing.named(figures):
        counts = sorted(arm.figures.errors.items(), key=lambda pair: -pair[1])
        for code, count in counts:
            message = arm.figures.messages.get(code)
            _say(
                console,
                f"errors of {arm.label}: {code} {count:,}"
                + (f", first: {_short(message)}" if message else ""),
            )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= REASON else line[: REASON - 1] + "…"


# -------------------------------------------------------------------------------------------- two runs, compared


def comparison(a: str, b: str, found: RunComparison, console: Console, *, items: int = CHANGES) -> None:
    """Run b against run a under one scorer (both by their ids): a row for each arm, then the items that changed,
    regressions first, ``items`` of each kind."""
    _say(console, f"{b} against {a}, by {found.scorer}", "bold")
    arms = found.arms
    pairs = [arm.figures for arm in arms if arm.figures is not None]
    if pairs:
        both = [arm for arm in arms if arm.figures is not None]
        columns = {
            ARM: [_both(arm) for arm in both],
            "before": [formats.score(arm.a_score) for arm in both],
            "after": [formats.score(arm.b_score) for arm in both],
            **pair_columns(pairs),
        }
        for less in ("won/lost/tied", "95%"):
            if _width(columns, console) > console.width:
                del columns[less]
        console.print(table(columns, console))
    for arm in arms:
        _changes(arm, found.scorer, console, items)
    for run, keys in ((a, found.unmatched_a), (b, found.unmatched_b)):
        if keys:
            _say(console, f"only in {run}: {', '.join(keys)}")


def _both(arm: ArmComparison) -> str:
    return arm.b if arm.a == arm.b else f"{arm.a} → {arm.b}"


def _changes(arm: ArmComparison, scorer: str, console: Console, items: int) -> None:
    for title, changes in (
        ("worse", arm.regressions),
        ("without a score now", arm.lost),
        ("better", arm.improvements),
        ("with a score now", arm.gained),
    ):
        if not changes:
            continue
        console.print()
        more = f", the first {items}" if len(changes) > items else ""
        _say(console, f"{_both(arm)}: {_items(len(changes))} {title}{more}")
        shown = changes[:items]
        columns = {
            "item": [change.item for change in shown],
            "answer before": [_answer(change.a_samples, scorer, best=title in WORSE) for change in shown],
            "answer after": [_answer(change.b_samples, scorer, best=title not in WORSE) for change in shown],
            "before": [formats.NONE if change.a is None else formats.percent(change.a) for change in shown],
            "after": [formats.NONE if change.b is None else formats.percent(change.b) for change in shown],
        }
        console.print(table(columns, console, texts=3))
    for title, ids in (("no longer asked", arm.only_a), ("new", arm.only_b)):
        if ids:
            _say(console, f"{_both(arm)}: {_items(len(ids))} {title}")


def _items(count: int) -> str:
    return formats.count(count, "item")


def _answer(samples: Iterable[Sample], scorer: str, *, best: bool) -> str:
    """What the best or the worst of the samples said, so that the change is seen; in one short line, of what the scorer
    took or the end of the text."""

    def value(sample: Sample) -> float:
        score = sample.scores.get(scorer)
        return -1.0 if score is None or score.value is None else score.value

    sample = (max if best else min)(samples, key=value, default=None)
    if sample is None or sample.outcome is Outcome.MISSING:
        return formats.NONE
    if sample.error is not None:
        return f"error: {sample.error.code}"[:ANSWER]
    score = sample.scores.get(scorer)
    said = " ".join(((score and score.answer) or sample.text or "").split())
    return said if len(said) <= ANSWER else "…" + said[1 - ANSWER :]


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(_plain(text), style=style, highlight=False, soft_wrap=True)


def _plain(text: str) -> Text:
    """No markup of rich's, and nothing that a terminal would take for an order or can't be written at all."""
    from rich.text import Text

    return Text("".join(c if c.isprintable() else "\ufffd" for c in text))
