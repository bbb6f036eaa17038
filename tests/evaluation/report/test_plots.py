"""Pictures say what the figures say."""

from __future__ import annotations

import itertools
import math
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.evaluation import standing
from tailrace.evaluation.figures import Estimate, Figures
from tailrace.evaluation.report import plots, svg
from tests.support.evaluation import HOSTILE, made_run

amounts = st.floats(1e-9, 1e6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_a_scale_has_room_for_its_values_and_names_them_by_round_ones(values: list[float]) -> None:
    scale = svg.linear(values, floor=0.0, ceiling=1.0)
    assert 0 <= scale.low <= min(values) + 1e-9
    assert max(values) - 1e-9 <= scale.high <= 1
    assert 2 <= len(scale.ticks) <= 8
    places = [scale.place(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(
        svg.LEFT - 1e-9 <= place <= svg.RIGHT + 1e-9 for place in [*places, *map(scale.place, scale.ticks)]
    )


@given(st.lists(amounts | st.just(0.0), max_size=6))
def test_a_scale_of_costs_is_logarithmic_where_they_are_of_different_orders(values: list[float]) -> None:
    scale = svg.of_costs(values)
    wide = bool(values) and min(values) > 0 and max(values) / min(values) >= svg.LOGARITHMIC
    assert scale.logarithmic == wide
    assert len(scale.ticks) >= 2
    for value in values:
        assert scale.low <= value <= scale.high * (1 + 1e-9)
        assert math.isfinite(scale.place(value))


def test_equal_ratios_are_equally_far_apart_on_a_logarithmic_scale() -> None:
    scale = svg.of_costs([0.001, 1.0])
    gaps = [scale.place(10 * value) - scale.place(value) for value in (0.001, 0.01, 0.1)]
    assert gaps == pytest.approx([gaps[0]] * 3)


def test_elements_escape_what_they_are_given() -> None:
    for text in HOSTILE:
        made = svg.tag("text", text, class_=text, x_y=None)
        inner = re.fullmatch(r'<text class="([^"<>]*)">([^<>]*)</text>', str(made), re.DOTALL)
        assert inner is not None
        assert made.striptags() == " ".join(text.split())


def test_a_long_label_is_cut_and_whole_in_its_tooltip() -> None:
    label = "a" * 100
    made = svg.words("0", 1, label, "label")
    assert f"<title>{label}</title>" in made
    assert f">{'a' * (svg.LABEL - 1)}…<" in made


def _dots(picture: object) -> dict[str, float]:
    """Tooltip → place across, in percent."""
    found = re.findall(r'<circle cx="([\d.]+)%"[^>]*><title>([^<]*)</title>', str(picture))
    return {tip: float(place) for place, tip in found}


def test_dots_stand_where_the_scores_are() -> None:
    figures = made_run().figures
    picture = plots.scores("id", "numeric", standing.ranking(figures, "numeric"))
    dots = _dots(picture)
    assert len(dots) == 3
    by_place = sorted(dots, key=lambda tip: dots[tip])
    assert [tip.split(": ")[0] for tip in by_place] == ["local:tiny-135m", "acme:small-2", "acme:large-2"]
    for arm in figures.arms:
        score = arm.scorers["numeric"].score
        assert score is not None
        assert f"{arm.model}: {100 * score.mean:.1f}%" in str(picture)


def test_an_arm_keeps_its_colour_wherever_it_stands() -> None:
    figures = made_run().figures
    ranked = standing.ranking(figures, "numeric")[::-1]
    for picture in (
        plots.scores("id", "numeric", ranked),
        plots.latency("id", ranked),
        plots.costs("id", ranked),
    ):
        colours = dict(re.findall(r'class="(?:dot|paid) (a\d)"><title>([^:]*:[^:]*): ', str(picture)))
        assert {label: colour for colour, label in colours.items()}.items() <= {
            "acme:large-2": "a0",
            "acme:small-2": "a1",
            "local:tiny-135m": "a2",
        }.items()


def test_arms_of_unknown_cost_are_not_drawn_against_cost() -> None:
    arms = standing.named(made_run(arms=5).figures)
    dots = _dots(plots.against_cost("id", "numeric", arms))
    assert len(dots) == 4
    assert not any("tiny" in tip for tip in dots)
    assert plots.against_cost("id", "numeric", arms[1:3]) is None


def test_labels_against_cost_do_not_cover_one_another() -> None:
    """Eight arms at nearly the same place."""
    figures = made_run(arms=2, items=30).figures
    (first, _), score = figures.arms, Estimate(0.5, 0.4, 0.6, 30, 30, "normal")
    scored = {"numeric": msgspec.structs.replace(first.scorers["numeric"], score=score)}
    arms = [
        msgspec.structs.replace(
            first, key=f"k{n}", model=f"model {n}", scorers=scored, answer_cost_nano=10**8 + n
        )
        for n in range(8)
    ]
    named = standing.named(Figures(arms, [], [], 30, 240))
    picture = str(plots.against_cost("id", "numeric", named))
    heights = sorted(map(float, re.findall(r'<text x="[^"]*" y="([\d.]+)"[^>]*class="label"', picture)))
    assert len(heights) == 8
    assert all(b - a >= plots.LINE - 1e-9 for a, b in itertools.pairwise(heights))


def test_what_there_is_nothing_to_draw_of_is_left_out() -> None:
    run = made_run(arms=1, items=1)
    arm = msgspec.structs.replace(
        run.figures.arms[0], duration=None, answer_cost_nano=0, cost_nano=0, unpriced=2
    )
    named = standing.named(Figures([arm], [], [], 1, 2))
    assert plots.latency("id", named) is None
    assert plots.costs("id", named) is None
    assert plots.categories("id", "numeric", named) is None
    assert plots.scores("id", "no such scorer", named) is None
