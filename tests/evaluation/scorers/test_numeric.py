"""The scorer numeric, and the numbers that it finds."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.evaluation import suite
from tailrace.evaluation.scorers import numbers
from tests.evaluation.scorers.answers import answer, score, value

NUMERIC = suite.Numeric()
#: How models say a number.
PHRASINGS = [
    "{}",
    "{}.",
    "**{}**",
    "The answer is {}.",
    "The answer is **{}**.",
    "Answer: {}",
    "**Answer:** {}",
    "$\\boxed{{{}}}$",
    "So it is \\boxed{{{}}}, as 3 < 4.",
    "#### {}",
    "Of 7 and 9 we get 8 = 8.\n#### {}",
    "6 * 7 = {}",
    "x = {}",
    "It costs ${}",
    "{} km",
    "{}km",
    "({})",
    "{}%",
    "= {}\n",
    "\\({}\\)",
    "The final answer is: ${}$",
    "1. first\n2. second\n\nAnswer: {}",
    "Let me count: 1, 2, 3. The total is {}",
    "The answer is {}, since 3 + 4 = 7.",
    "{}\n",
    "`{}`",
    '"{}"',
    "答案是{}。",
    "On 2024-05-01 at 10:30: {}",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("42", "42"),
        ("1,000", "1000"),
        ("1000.0", "1000"),
        ("1.000,5", "1000.5"),
        ("-5", "-5"),
        ("−5", "-5"),
        ("- 5", "5"),
        ("x = - 5", "-5"),
        ("1/2", "0.5"),
        ("\\frac{1}{2}", "0.5"),
        ("3 1/2", "3.5"),
        ("3½", "3.5"),
        ("½", "0.5"),
        ("50%", "50"),
        ("1e3", "1000"),
        ("$1,234.50", "1234.5"),
        ("42 km", "42"),
        ("42km", "42"),
        ("On 2024-05-01 we had 7", "7"),
        ("7 on 2024-05-01", "7"),
        ("The answer is 42. I checked 3 times", "42"),
        ("So \\boxed{42}, as in step 3", "42"),
        ("#### 42\nfoo 3", "42"),
        ("Answer: 6 × 7 = 42", "42"),
        ("Answer: 42 = 6*7", "42"),
        ("**Answer:** 42", "42"),
        ("**Answer:**\n\n42", "42"),
        ("The answer is not 5 but 6", "6"),
        ("1. foo\n2. bar", "2"),
        ("10^3", "1000"),
        ("3 × 10^8 m/s", "300000000"),
        ("3 \\times 10^{8}", "300000000"),
        ("x^2", None),
        ("m²", None),
        ("5 m²", "5"),
        ("10²", "100"),
        ("٤٢", "42"),
        ("４２", "42"),
        ("१२३", "123"),
        ("1 000 000", "1000000"),
        ("12 345", "345"),
        ("12\xa0345", "12345"),
        ("1{,}000", "1000"),
        ("12\\,345", "12345"),
        ("1'000", "1000"),
        ("(3,4)", "4"),
        ("1,5", "1.5"),
        ("0,125", "0.125"),
        ("1,2,3", "3"),
        ("1, 2, 3", "3"),
        ("1.2.3", None),
        ("12,34,567", "1234567"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("3-5", "5"),
        ("5 -3", "-3"),
        ("COVID-19", None),
        ("x=-5", "-5"),
        (".5", "0.5"),
        ("-.5", "-0.5"),
        ("5.", "5"),
        ("$42$", "42"),
        ("\\$42", "42"),
        ("$\\frac{3}{4}$", "0.75"),
        ("-\\frac{3}{4}", "-0.75"),
        ("2\\frac{1}{2}", "2.5"),
        ("\\frac12", "0.5"),
        ("5/0", "0"),
        ("10 / 2 = 5", "5"),
        ("_42_", "42"),
        ("**42**", "42"),
        ("x_2", None),
        ("the 5th", "5"),
        ("12, as in the 5th step", "12"),
        ("1e999999999999", None),
        ("١٬٠٠٠٫٥", "1000.5"),
        ("답은 42입니다", "42"),
        ("答案是42。", "42"),
        ("答案：42，因为3", "42"),
        ("The result is 1,000.", "1000"),
        ("The final answer is: $\\boxed{-7}$", "-7"),
        ("The answer is 5 apples and 3 pears", "5"),
        ("Answer: $-3$", "-3"),
        ("Answer: -3", "-3"),
        ("Answer -3", "-3"),
        ("Answer: - 3", "-3"),
        ("so 2 + 2 = 4.", "4"),
        ("1.000.000", "1000000"),
        ("1.000", "1"),
        ("1_000_000", "1000000"),
        ("1/2/2024", None),
        ("10:30", None),
        ("the total is 3/4 of 8, i.e. 6", "6"),
        ("0x1F", None),
        ("2^10", "1024"),
        ("2**10", "1024"),
        ("1,234,567.89", "1234567.89"),
        ("1,234,5", "5"),
        ("100 200 300", "300"),
        ("I have 3,000 and 12,5", "12.5"),
        ("US$5", "5"),
        ("-1/2", "-0.5"),
        ("- 1/2", "0.5"),
        ("= -1/2", "-0.5"),
    ],
)
def test_the_final_number(text: str, expected: str | None) -> None:
    found = numbers.final(text)
    assert (None if found is None else found.value) == (
        None if expected is None else pytest.approx(Decimal(expected))
    )


@given(st.integers(-(10**12), 10**12), st.sampled_from(PHRASINGS))
def test_any_integer_is_recognised_in_each_phrasing(number: int, phrasing: str) -> None:
    assert value(NUMERIC, phrasing.format(number), str(number)) == 1


@given(st.integers(-(10**12), 10**12), st.sampled_from(PHRASINGS))
def test_no_phrasing_makes_a_number_another_one(number: int, phrasing: str) -> None:
    assert value(NUMERIC, phrasing.format(number), str(number + 1 if number else 1)) == 0


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{:,}", "{:,}.00", "{:_}", "{}.0", "{:.3e}", "{:+}"]))
def test_a_number_is_the_same_however_it_is_written(number: int, style: str) -> None:
    written = style.format(number)
    expected = Decimal(written.replace(",", "").replace("_", ""))
    assert value(NUMERIC, f"It is {written}", f"{expected:f}") == 1


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**6), max_value=10**6))
def test_any_decimal_is_recognised(number: Decimal) -> None:
    assert value(NUMERIC, f"The answer is {number:f}.", str(number)) == 1


@given(
    st.text(max_size=40),
    st.lists(
        st.sampled_from([*"0123456789", ",", ".", "/", "-", " ", "\\frac", "{", "}", "^", "e", "="]),
        max_size=20,
    ),
)
def test_any_text_is_read_without_an_error(text: str, pieces: list[str]) -> None:
    for each in (text, "".join(pieces)):
        for number in numbers.numbers(each):
            assert number.value.is_finite()
        numbers.final(each)
        numbers.target(each)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("42", "42"),
        ("1,000", "1000"),
        ("-1/2", "-0.5"),
        ("50%", "50"),
        ("42 km", "42"),
        ("so 6*7=42\n#### 42", "42"),
        ("\\boxed{3}", "3"),
        ("forty-two", None),
        ("between 3 and 5", None),
        ("", None),
        ("2024-05-01", None),
    ],
)
def test_targets(target: str, expected: str | None) -> None:
    assert numbers.target(target) == (None if expected is None else Decimal(expected))


@pytest.mark.parametrize(
    ("tolerance", "relative", "text", "target", "expected"),
    [
        (0, 1e-9, "0.3333333333333", "1/3", 1),
        (0, 1e-9, "0.333", "1/3", 0),
        (0.001, 0, "0.333", "1/3", 1),
        (0, 0.01, "99", "100", 1),
        (0, 0.01, "98.9", "100", 0),
        (0, 0.01, "-99", "-100", 1),
        (0, 0.01, "0.0001", "0", 0),
        (0.5, 0, "3.5", "3", 1),
        (0.5, 0, "3.51", "3", 0),
        (0, 0, "0.1", "0.1", 1),
        (0, 0, "123456789012345678901234567890", "123456789012345678901234567891", 0),
        (1e300, 0, "5", "1e299", 1),
    ],
)
def test_either_tolerance_suffices(
    tolerance: float, relative: float, text: str, target: str, expected: float
) -> None:
    assert value(suite.Numeric(tolerance=tolerance, relative=relative), text, target) == expected


def test_explanations_name_what_was_read() -> None:
    wrong, none = score(NUMERIC, answer("It is 1,234 km", "1,235"), answer("Nothing.", "0"))
    assert (wrong.answer, wrong.explanation) == ("1,234", "1,234 is not '1,235'")
    assert (none.answer, none.explanation) == (None, "there is no number in the answer")


@pytest.mark.parametrize(
    "piece", ["1,", "1 ", "1/", "100 000 ", "1e", "12,34,", "\\boxed{", "answer is ", "1.000.", "^2", "1:00"]
)
def test_degenerate_texts_take_no_time(piece: str) -> None:
    """pytest's own limit of time is what fails here."""
    numbers.final(piece * 3000)
