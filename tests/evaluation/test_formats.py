"""Numbers as people read them."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.evaluation import formats
from tailrace.evaluation.figures import Estimate
from tests.support.evaluation import made_run


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (0, "$0"),
        (0.00312, "$0.00312"),
        (0.0031249, "$0.00312"),
        (0.000000034, "$0.000000034"),
        (0.1, "$0.10"),
        (0.5, "$0.50"),
        (0.125, "$0.125"),
        (0.9949, "$0.995"),
        (0.9999, "$1.00"),
        (0.0999, "$0.0999"),
        (0.09999, "$0.10"),
        (1.2, "$1.20"),
        (1234.5, "$1,234.50"),
    ],
)
def test_dollars_have_at_least_two_digits_that_say_something(amount: float, shown: str) -> None:
    assert formats.dollars(amount) == shown


@given(st.integers(1, 10**16))
def test_dollars_are_right_to_half_a_percent(nano: int) -> None:
    shown = float(formats.dollars(nano / formats.NANO).removeprefix("$").replace(",", ""))
    assert shown == pytest.approx(nano / formats.NANO, rel=0.005)


@pytest.mark.parametrize(
    ("nano", "unpriced", "of", "shown"),
    [
        (0, 0, 9, "$0"),
        (0, 9, 9, "?"),
        (0, 3, 9, "?"),
        (10**7, 3, 9, "≥ $0.01"),
        (10**7, 0, 9, "$0.01"),
        (5, 9, 9, "?"),
    ],
)
def test_a_cost_says_whether_all_of_it_is_known(nano: int, unpriced: int, of: int, shown: str) -> None:
    assert formats.cost(nano, unpriced, of) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0%"), (1, "100%"), (0.7168, "71.7%"), (0.99999, "99.9%"), (0.00001, "0.1%"), (0.5, "50.0%")],
)
def test_only_what_is_whole_is_shown_as_whole(value: float, shown: str) -> None:
    assert formats.percent(value) == shown


@pytest.mark.parametrize(
    ("ms", "shown"),
    [
        (None, "–"),
        (0, "0 ms"),
        (999.4, "999 ms"),
        (999.6, "1.00 s"),
        (9_996, "10.0 s"),
        (99_960, "1 min 40 s"),
        (119_700, "2 min 00 s"),
        (3_599_600, "1 h 00 min"),
        (7_800_000, "2 h 10 min"),
    ],
)
def test_durations(ms: float | None, shown: str) -> None:
    assert formats.duration(ms) == shown


def test_an_interval_is_shown_where_there_is_one() -> None:
    assert formats.interval(Estimate(0.7, 0.65, 0.75, 9, 9, "t")) == "65.0–75.0"
    assert formats.interval(Estimate(0.7, None, None, 1, 1, "t")) == formats.interval(None) == ""
    assert formats.points_interval(Estimate(-0.1, -0.2, 0.01, 9, 9, "t")) == "−20.0 to +1.0"


@pytest.mark.parametrize(
    ("p", "shown"), [(None, "–"), (0.0001, "<0.001"), (0.0123, "0.012"), (0.5, "0.50"), (1, "1.00")]
)
def test_chances(p: float | None, shown: str) -> None:
    assert formats.chance(p) == shown


def test_labels_name_the_prompt_where_there_are_several() -> None:
    figures = made_run(items=3, arms=2).figures
    assert formats.labels(figures) == {arm.key: arm.key for arm in figures.arms}
    several = msgspec.structs.replace(
        figures,
        arms=[
            msgspec.structs.replace(figures.arms[0], key=f"large/{prompt}", prompt=prompt)
            for prompt in ("default", "terse")
        ],
    )
    assert list(formats.labels(several).values()) == ["large · default", "large · terse"]


def test_a_model_is_called_as_the_suite_calls_it() -> None:
    figures = made_run(items=3, arms=2).figures
    named = msgspec.structs.replace(figures.arms[1], key="warm")
    assert formats.labels(msgspec.structs.replace(figures, arms=[named])) == {"warm": "warm"}
