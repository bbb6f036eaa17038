"""The pictures of a report, as SVG: scores, categories, latency, cost, and score against cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from tailrace.amounts import NANO
from tailrace.evaluation import formats
from tailrace.evaluation.figures import Estimate, PairFigures
from tailrace.evaluation.report import svg
from tailrace.evaluation.standing import Named

#: Colours of arms, ``a0`` to ``a7`` in report.css.
COLOURS = 8
#: Pixels.
ROW, AXIS, DOT = 42, 24, 5.5
SCATTER = 300
#: Pixels of a line of an arm within a category, and of a category's name.
SLOT, NAME = 13, 24
#: For keeping labels of the scatter apart: as if the picture had this width, and letters that, in pixels. Labels have
#: room to either side on a telephone too.
WIDTH, LETTER, LINE, LETTERS = 400.0, 6.4, 15.0, 26


def colour(place: int) -> str:
    """The class of the arm at that place."""
    return f"a{place % COLOURS}"


def scores(id: str, scorer: str, arms: Sequence[Named]) -> Markup | None:
    """A dot for each arm's score, on its interval."""
    found = [(a.place, a.label, score) for a in arms if (score := a.score(scorer)) is not None]
    if not found:
        return None
    scale = _of_scores(estimate for _, _, estimate in found)
    bottom = ROW * len(found)
    parts = [_score_axis(scale, 0, bottom)]
    for place, (n, label, estimate) in enumerate(found):
        top = ROW * place
        parts += _row(top, label, _score_words(estimate))
        parts += _whisker(scale, top + 27, estimate, f"{label}: {_score_words(estimate)}", n, DOT)
    said = "; ".join(f"{label}: {_score_words(estimate)}" for _, label, estimate in found)
    return svg.picture(id, f"Scores by {scorer}, with 95% intervals", said, bottom + AXIS, *parts)


def categories(id: str, scorer: str, arms: Sequence[Named]) -> Markup | None:
    """Each category with a dot for each arm, in the arm's colour. None where there are fewer than two of them."""
    names = category_names(scorer, arms)
    if len(names) < 2:
        return None
    found = {
        name: [
            (a.place, a.label, a.figures.scorers[scorer].categories[name])
            for a in arms
            if scorer in a.figures.scorers and name in a.figures.scorers[scorer].categories
        ]
        for name in names
    }
    scale = _of_scores(estimate for rows in found.values() for _, _, estimate in rows)
    bottom = sum(NAME + SLOT * len(rows) + 6 for rows in found.values())
    parts = [_score_axis(scale, 0, bottom)]
    top, said = 0.0, list[str]()
    for name, rows in found.items():
        parts.append(svg.words("0", top + 16, name or "(none)", "label"))
        for place, (n, label, estimate) in enumerate(rows):
            tip = f"{name}, {label}: {_score_words(estimate)}, {estimate.items} items"
            parts += _whisker(scale, top + NAME + SLOT * (place + 0.5), estimate, tip, n, 4)
        top += NAME + SLOT * len(rows) + 6
        said.append(f"{name}: " + ", ".join(f"{label} {formats.score(e)}" for _, label, e in rows))
    return svg.picture(
        id, f"Scores by {scorer} in each category", "; ".join(said), int(bottom + AXIS), *parts
    )


def category_names(scorer: str, arms: Iterable[Named]) -> list[str]:
    """In the order of their first showing up."""
    own = (a.figures.scorers[scorer].categories for a in arms if scorer in a.figures.scorers)
    return list(dict.fromkeys(name for categories in own for name in categories))


def latency(id: str, arms: Sequence[Named]) -> Markup | None:
    """From the median to the 90th percentile of each arm's times."""
    found = [(a.place, a.label, spread) for a in arms if (spread := a.figures.duration) is not None]
    if not found:
        return None
    scale = svg.linear([0.0, *(spread.p90 for _, _, spread in found)], count=4, floor=0.0)
    bottom = ROW * len(found)
    parts = [svg.axis(scale, 0, bottom, map(formats.duration, scale.ticks))]
    said: list[str] = []
    for place, (n, label, spread) in enumerate(found):
        top, middle = ROW * place, ROW * place + 27
        value = f"{formats.duration(spread.p50)} – {formats.duration(spread.p90)}"
        tip = f"{label}: p50 {formats.duration(spread.p50)}, p90 {formats.duration(spread.p90)}, of {spread.count:,}"
        start, end = scale.at(spread.p50), scale.at(spread.p90)
        parts += _row(top, label, value)
        parts.append(svg.line(start, middle, end, middle, f"range {colour(n)}"))
        parts.append(svg.line(end, middle - 5, end, middle + 5, f"stop {colour(n)}"))
        parts.append(svg.dot(start, middle, DOT, f"dot {colour(n)}", tip))
        said.append(tip)
    return svg.picture(id, "Latency, median to 90th percentile", "; ".join(said), bottom + AXIS, *parts)


def costs(id: str, arms: Sequence[Named]) -> Markup | None:
    """What answers cost, filled as far as this run paid for them; a ``?`` where nobody knows."""
    if all(formats.answer_cost(a.figures) == formats.UNKNOWN for a in arms):
        return None
    scale = svg.linear(
        [0.0, max(max(a.figures.answer_cost_nano, a.figures.cost_nano) for a in arms) / NANO or 1e-6],
        count=4,
        floor=0.0,
    )
    bottom = ROW * len(arms)
    parts = [svg.axis(scale, 0, bottom, map(formats.dollars, scale.ticks))]
    said: list[str] = []
    for row, (n, label, arm) in enumerate((a.place, a.label, a.figures) for a in arms):
        top, value = ROW * row, formats.answer_cost(arm)
        paid = formats.paid(arm)
        if paid != value:
            value = f"{paid} of {value}"
        tip = f"{label}: {paid} paid by this run, of {formats.answer_cost(arm)} that its answers cost"
        parts += _row(top, label, value)
        for kind, nano in (("all", arm.answer_cost_nano), ("paid", arm.cost_nano)):
            if nano:
                width = scale.width(0, nano / NANO)
                parts.append(svg.bar(scale.at(0), top + 21, width, 11, f"{kind} {colour(n)}", tip))
        said.append(tip)
    return svg.picture(id, "Cost of each arm", "; ".join(said), bottom + AXIS, *parts)


def against_cost(id: str, scorer: str, arms: Sequence[Named]) -> Markup | None:
    """Score against the cost of an answer; steps join the arms that no other beats in both. None where fewer than two
    arms have a score and a cost that is known."""
    found: list[tuple[int, str, Estimate, float]] = []
    for a in arms:
        estimate, price = a.score(scorer), formats.dollars_per_sample(a.figures)
        if estimate is not None and price is not None:
            found.append((a.place, a.label, estimate, price))
    if len(found) < 2:
        return None
    across = _within(svg.of_costs(price for *_, price in found), 11, 97)
    down = _of_scores(estimate for _, _, estimate, _ in found)

    def height(value: float) -> float:
        return SCATTER - 8 - (SCATTER - 20) * (down.place(value) - svg.LEFT) / (svg.RIGHT - svg.LEFT)

    parts = [svg.axis(across, 4, SCATTER - 4, map(formats.dollars, across.ticks))]
    for value in down.ticks:
        parts.append(svg.line("0", height(value), "100%", height(value), "grid"))
        parts.append(svg.words("0", height(value) - 3, _tick(value), "tick"))
    parts += _steps([(across.at(price), height(e.mean), e.mean, price) for _, _, e, price in found])
    for n, label, e, price in found:
        tip = f"{label}: {_score_words(e)} for {formats.dollars(price)} an answer"
        if e.low is not None and e.high is not None:
            x = across.at(price)
            parts.append(svg.line(x, height(e.low), x, height(e.high), f"whisker {colour(n)}"))
        parts.append(svg.dot(across.at(price), height(e.mean), DOT + 0.5, f"dot {colour(n)}", tip))
    parts += _apart([(across.place(price), height(e.mean), label) for _, label, e, price in found])
    said = "; ".join(
        f"{label}: {formats.score(e)} for {formats.dollars(price)}" for _, label, e, price in found
    )
    return svg.picture(id, f"Score by {scorer} against the cost of an answer", said, SCATTER + AXIS, *parts)


def difference(pair: PairFigures, scale: svg.Scale, tip: str) -> Markup:
    """A small picture for a cell: the difference on its interval, and where zero is."""
    zero = scale.at(0)
    return svg.tag(
        "svg",
        svg.line(zero, 1, zero, 19, "zero"),
        *_whisker(scale, 10, pair.difference, tip, None, 4),
        width="100%",
        height=20,
        class_="cell",
        aria_hidden="true",
    )


def of_differences(pairs: Iterable[PairFigures]) -> svg.Scale:
    """One scale for all: from the lowest low to the highest high, zero among them."""
    values = [0.0]
    for pair in pairs:
        d = pair.difference
        values += [value for value in (d.mean, d.low, d.high) if value is not None]
    return svg.linear(values)


def shares(counts: dict[str, int], tip: str) -> Markup:
    """A bar for a cell, cut up by verdicts; their names are classes."""
    total, at = sum(counts.values()) or 1, 0.0
    parts: list[Markup] = []
    for verdict, count in counts.items():
        width = 100 * count / total
        if count:
            parts.append(
                svg.bar(svg.percents(at), 0, svg.percents(width), 12, f"v-{verdict}", f"{verdict}: {count:,}")
            )
        at += width
    return svg.tag("svg", *parts, width="100%", height=12, class_="cell shares", role="img", aria_label=tip)


# ------------------------------------------------------------------------------------------------------- parts


def _of_scores(estimates: Iterable[Estimate]) -> svg.Scale:
    values: list[float] = []
    for e in estimates:
        values += [value for value in (e.mean, e.low, e.high) if value is not None]
    return svg.linear(values, floor=0.0, ceiling=1.0)


def _tick(value: float) -> str:
    return f"{100 * value:g}%"


def _score_axis(scale: svg.Scale, top: float, bottom: float) -> Markup:
    return svg.axis(scale, top, bottom, map(_tick, scale.ticks))


def _score_words(estimate: Estimate) -> str:
    inside = formats.interval(estimate)
    return formats.score(estimate) + (f" ({inside})" if inside else "")


def _row(top: float, label: str, value: str) -> list[Markup]:
    return [
        svg.words("0", top + 15, label, "label"),
        svg.words("100%", top + 15, value, "value", anchor="end"),
    ]


def _whisker(
    scale: svg.Scale, y: float, estimate: Estimate, tip: str, place: int | None, radius: float
) -> list[Markup]:
    kind = "" if place is None else " " + colour(place)
    parts: list[Markup] = []
    if estimate.low is not None and estimate.high is not None:
        parts.append(svg.line(scale.at(estimate.low), y, scale.at(estimate.high), y, "whisker" + kind))
    return [*parts, svg.dot(scale.at(estimate.mean), y, radius, "dot" + kind, tip)]


def _within(scale: svg.Scale, left: float, right: float) -> svg.Scale:
    return svg.Scale(scale.low, scale.high, scale.ticks, scale.logarithmic, left, right)


def _steps(points: Iterable[tuple[str, float, float, float]]) -> list[Markup]:
    """From the cheapest on, each that is better than all before it."""
    parts: list[Markup] = []
    best: tuple[str, float, float] | None = None
    for x, y, score, _ in sorted(points, key=lambda point: (point[3], -point[2])):
        if best is not None and score <= best[2]:
            continue
        if best is not None:
            parts.append(svg.line(best[0], best[1], x, best[1], "frontier"))
            parts.append(svg.line(x, best[1], x, y, "frontier"))
        best = (x, y, score)
    return parts


def _apart(points: Iterable[tuple[float, float, str]]) -> list[Markup]:
    """Labels beside their dots, moved down where one would cover another, or a dot."""
    ordered = sorted(points, key=lambda point: point[1])
    taken = [(place / 100 * WIDTH - 8, place / 100 * WIDTH + 8, y + 4) for place, y, _ in ordered]
    parts: list[Markup] = []
    for place, y, label in ordered:
        length = min(len(label), LETTERS) * LETTER
        x, left = place / 100 * WIDTH, place > 50
        start, end = (x - 10 - length, x - 10) if left else (x + 10, x + 10 + length)
        at = max(y - 8, 10.0)
        while any(start < e and s < end and abs(at - t) < LINE for s, e, t in taken):
            at += 2
        taken.append((start, end, at))
        side, dx = ("end", -10) if left else ("start", 10)
        parts.append(svg.words(svg.percents(place), at, label, "label", anchor=side, dx=dx, most=LETTERS))
    return parts
