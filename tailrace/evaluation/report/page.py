"""The page: what its template is given, and what it may do.

Everything that comes from a run is escaped, by Jinja2 or by ``svg.tag``, and samples are base64. On top of that the
page's own policy lets it run and look as the two files beside it say, and nothing else: it can neither load nor send
anything, nor run a script that somebody got into it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tailrace.atomic import replacing
from tailrace.evaluation import formats, standing
from tailrace.evaluation.figures import Figures, PairFigures, RunInfo
from tailrace.evaluation.report import plots, samples
from tailrace.evaluation.results import Row
from tailrace.evaluation.shapes import Verdict
from tailrace.evaluation.standing import Named

#: Verdicts that have a column only where there are any.
RARE = {Verdict.PARTLY, Verdict.MISSING}
#: What an unknown cost is sorted as: after all others.
UNPRICED = 10**30

_HERE = Path(__file__).parent


def render(info: RunInfo, figures: Figures, rows: Iterable[Row]) -> Iterator[bytes]:
    """The file, piece by piece; rows are read once, and no more than ``samples.MOST`` of them are in it."""
    style, script = _text("report.css"), _text("report.js")
    arms = standing.named(figures)
    pieces = _template().generate(
        info=info,
        figures=figures,
        arms=arms,
        sections=[_section(place, scorer, figures) for place, scorer in enumerate(info.scorers)],
        plots=_plots(arms),
        f=formats,
        colour=plots.colour,
        style=Markup(style),  # noqa: S704 - both are our own files
        script=Markup(script),  # noqa: S704
        policy=_policy(style, script),
        data=_data(info, figures, arms),
        samples=samples.pieces(rows, [arm.figures.key for arm in arms], info.scorers),
    )
    for piece in pieces:
        yield piece.encode("utf-8", "replace")  # a name may hold half of a surrogate pair


def write(path: Path, info: RunInfo, figures: Figures, rows: Iterable[Row]) -> None:
    """The file, put in place in one step. Raises TailraceError where it can't be written."""
    with replacing(path) as file:
        file.writelines(render(info, figures, rows))


@cache
def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_text("report.html"))


def _policy(style: str, script: str) -> str:
    """Content-Security-Policy: the two texts by their hashes; ``data:`` is for the icon, which is empty."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(info: RunInfo, figures: Figures, arms: Sequence[Named]) -> dict[str, Any]:
    """What the script has to know of the run."""
    return {
        "run": info.id,
        "scorers": info.scorers,
        "verdicts": [verdict.value for verdict in Verdict],
        "arms": [{"key": a.figures.key, "label": a.label, "colour": plots.colour(a.place)} for a in arms],
        "samples": figures.samples,
    }


def _plots(arms: Sequence[Named]) -> list[tuple[str, str, Markup]]:
    """Title, note and picture of those that are the same for all scorers."""
    found = [
        (
            "Latency",
            "From the median to the 90th percentile, of answers that a provider gave.",
            plots.latency("latency", arms),
        ),
        (
            "Cost",
            "What the answers cost; filled is what this run paid, the rest came from the cache.",
            plots.costs("costs", arms),
        ),
    ]
    return [(title, note, picture) for title, note, picture in found if picture is not None]


def _section(place: int, scorer: str, figures: Figures) -> dict[str, Any]:
    """All of one scorer."""
    arms, ranked = standing.named(figures), standing.ranking(figures, scorer)
    labels = {arm.figures.key: arm for arm in arms}
    found = [arm.figures.scorers[scorer] for arm in arms if scorer in arm.figures.scorers]
    verdicts = [v.value for v in Verdict if v not in RARE or any(s.verdicts.get(v.value) for s in found)]
    names = plots.category_names(scorer, arms)
    pairs = standing.comparisons(figures, scorer)
    scale = plots.of_differences(pairs)
    return {
        "id": f"s{place}",
        "scorer": scorer,
        "headline": standing.headline(figures, scorer),
        "verdicts": verdicts,
        "ks": sorted({k for s in found for k in s.pass_at} - {1}),
        "rows": [_row(arm, scorer, verdicts) for arm in ranked if scorer in arm.figures.scorers],
        "scores": plots.scores(f"s{place}-scores", scorer, ranked),
        "scatter": plots.against_cost(f"s{place}-scatter", scorer, arms),
        "unplaced": [arm.label for arm in arms if formats.dollars_per_sample(arm.figures) is None],
        "categories": plots.categories(f"s{place}-categories", scorer, arms),
        "names": names,
        "by_category": [
            (arm, [arm.figures.scorers[scorer].categories.get(name) for name in names])
            for arm in ranked
            if scorer in arm.figures.scorers
        ],
        "methods": sorted({s.score.method for s in found if s.score is not None}),
        "tests": sorted({pair.test for pair in pairs}),
        "pairs": [
            {
                "pair": pair,
                "ahead": labels[pair.b],
                "behind": labels[pair.a],
                "sure": standing.is_sure(pair),
                "picture": plots.difference(pair, scale, _said(pair, labels)),
            }
            for pair in pairs
            if pair.a in labels and pair.b in labels
        ],
    }


def _said(pair: PairFigures, labels: dict[str, Named]) -> str:
    inside = formats.points_interval(pair.difference)
    gap = f"{labels[pair.b].label} against {labels[pair.a].label}: {formats.points(pair.difference.mean)}"
    return gap + (f" ({inside})" if inside else "")


def _row(arm: Named, scorer: str, verdicts: Sequence[str]) -> dict[str, Any]:
    found = arm.figures.scorers[scorer]
    counts = {verdict: found.verdicts.get(verdict, 0) for verdict in verdicts}
    hits = arm.figures.cache.get("hit", 0) + arm.figures.cache.get("join", 0)
    tip = ", ".join(f"{verdict} {count:,}" for verdict, count in counts.items() if count)
    return {
        "arm": arm,
        "found": found,
        "counts": counts,
        "shares": plots.shares(counts, tip),
        "hits": hits,
        "cost": UNPRICED
        if formats.answer_cost(arm.figures) == formats.UNKNOWN
        else arm.figures.answer_cost_nano,
    }
