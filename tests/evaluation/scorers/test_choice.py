"""The scorer choice: letters however they are phrased, and letters that are none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.errors import TailraceError
from tailrace.evaluation import suite
from tailrace.evaluation.scorers import check_items
from tailrace.evaluation.scorers.choice import read
from tests.evaluation.scorers.answers import CAPITALS, answer, score, value

OPTIONS = dict(zip("ABCD", CAPITALS, strict=True))
LISTED = "\n".join(f"{letter}) {text}" for letter, text in OPTIONS.items())
#: How models say a letter; small ones too, where the second is true.
PHRASINGS = [
    ("{}", True),
    ("{}.", True),
    ("({})", True),
    ("**{}**", True),
    ("{})", True),
    ("$\\boxed{{{}}}$", True),
    ("Answer: {}", True),
    ("**Answer:** {}", True),
    ("The answer is {}.", True),
    ("The correct answer is ({}).", True),
    ("The answer is **{}**", True),
    ("I'd go with option {}.", True),
    ("Option {}", True),
    ("I choose {}.", False),
    ("My final answer: {}", True),
    ("{} is correct.", False),
    ("The correct option is {}.", True),
    ("So the answer is \\boxed{{\\text{{{}}}}}.", True),
    ("Let me think.\n\n{}", True),
    ("{}\n\nThis is because of the rest.", True),
    ("Therefore, {}.", False),
    ("#### {}", True),
    ('{{"answer": "{}"}}', True),
    ("答案是{}。", False),
    ("The answer is {}, and not the others.", True),
    ("Wait, no, {}.", False),
    ("It's {}.", False),
    ("Answer: '{}'", True),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        ("Answer: B", "B"),
        ("The answer is B.", "B"),
        ("B) Paris", "B"),
        ("\\boxed{B}", "B"),
        ("The answer is $\\boxed{\\text{B}}$.", "B"),
        ("I'd go with option b", "B"),
        ("A is wrong; the answer is C", "C"),
        ("A… no, B", "B"),
        ("It's not A", ""),
        ("A and B", "AB"),
        ("Because Canada", ""),
        ("A whale is a mammal", ""),
        ("I think so", ""),
        ("Paris", "B"),
        ("paris.", "B"),
        ("The answer is Paris", "B"),
        ("The capital is Paris, not London.", "B"),
        ("A) London\nB) Paris\nC) Rome\nD) Berlin\n\nB", "B"),
        ("A) London\nB) Paris\nC) Rome\nD) Berlin\n\nB) Paris", "B"),
        ("A) London\nB) Paris\nC) Rome\nD) Berlin", ""),
        ("A) London B) Paris C) Rome D) Berlin\nAnswer: C", "C"),
        ("Answer with A, B, C or D.\n\nC", "C"),
        ("Answer: A, B, C or D?", "ABCD"),
        ("The correct answer is (C) Rome.", "C"),
        ("Option D", "D"),
        ("D is correct.", "D"),
        ("The answer is a whale", ""),
        ("I choose C because A is too small", "C"),
        ("If the answer is A then x is 3, but it isn't. So B.", "B"),
        ("I don't think the answer is A. It must be D.", "D"),
        ("Not A but B", "B"),
        ("not A, B", "B"),
        ("neither A nor B, so C", "C"),
        ("Answer: A. Wait, no, B.", "B"),
        ("Answer: B. (A is correct only when x<0)", "B"),
        ("B. Because A is wrong.", "B"),
        ("B because C is too small", "B"),
        ("The answer is B, not A", "B"),
        ("The answer is either A or B", "AB"),
        ("A/B", "AB"),
        ("答案是B。", "B"),
        ("Antwort: C", "C"),
        ("La respuesta es D", "D"),
        ('{"answer": "B"}', "B"),
        ("Ⓑ", "B"),
        ("Ｂ", "B"),
        ("", ""),
        ("E", ""),
        ("The U.S.A. is big", ""),
        ("A-level", ""),
        ("C++", ""),
        ("25 °C", ""),
        ("#### B", "B"),
        ("### Answer\nB", "B"),
        ("**Answer:**\n\n**B**", "B"),
        ("The answer is **B) Paris**.", "B"),
        ("A) London - wrong.\nB) Paris - correct.\nC) Rome - wrong.\nD) Berlin - wrong.", "B"),
        ("Let's see. A is London, which is in the UK. B is Paris. Therefore, B.", "B"),
        ("<b>B</b>", "B"),
        ("Option A is incorrect. Option B is correct.", "B"),
        ("A", "A"),
        ("a", "A"),
        ("A.", "A"),
        ("a)", "A"),
        ("The answer is A", "A"),
        ("the answer is a", "A"),
        ("the answer is a.", "A"),
        ("Answer: A because it is", "A"),
        ("A, since it rains", "A"),
        ("A is correct", "A"),
        ("I'd say A", "A"),
        ("C or D", "CD"),
        ("Both A and C are right", "AC"),
        ("the answer is A and C", "AC"),
        ("My answer: D) Berlin. A is London", "D"),
        ("It can't be A. It can't be B. It can't be C.", ""),
        ("I", ""),
        ("Wait, A is wrong. D.", "D"),
        ("I would choose option (c)", "C"),
        ("Rome is the capital of Italy", "C"),
        ("The option that is correct is D", "D"),
        ("The wrong answer is A. ", ""),
        ("So the final answer is: C", "C"),
        ("Answer B", "B"),
        ("choice b", "B"),
        ("C is the answer", "C"),
        ("C it is", "C"),
        ("d", "D"),
        ("It is b.", "B"),
        ("I guess it's D", "D"),
        ("ANSWER: C", "C"),
        ("answer = C", "C"),
        ("→ C", "C"),
        ("The answer is not B. The answer is C.", "C"),
        ("The answer isn't A but B", "B"),
    ],
)
def test_letters_that_an_answer_names(text: str, expected: str) -> None:
    assert "".join(sorted(read(text, "ABCD", OPTIONS).letters)) == expected


@given(st.sampled_from("ABCDEFGHIJ"), st.sampled_from(PHRASINGS), st.booleans())
def test_any_letter_is_recognised_in_each_phrasing(
    letter: str, phrasing: tuple[str, bool], small: bool
) -> None:
    text, may_be_small = phrasing
    said = text.format(letter.lower() if small and may_be_small else letter)
    assert value(suite.Choice(), said, letter) == 1
    assert value(suite.Choice(), said, "A" if letter != "A" else "B") == 0


@given(st.sampled_from("ABCD"), st.sampled_from(PHRASINGS))
def test_a_question_repeated_first_changes_nothing(letter: str, phrasing: tuple[str, bool]) -> None:
    text = f"Which is a capital?\n{LISTED}\n\n{phrasing[0].format(letter)}"
    assert value(suite.Choice(choices="choices"), text, letter, choices=CAPITALS) == 1


@given(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(["A", "b", " is ", "answer", ": ", "not ", "\n", "(", ")", "no, ", "Paris", ". "]),
        max_size=12,
    ),
)
def test_any_text_is_read_without_an_error(text: str, pieces: list[str]) -> None:
    for each in (text, "".join(pieces)):
        assert read(each, "ABCD", OPTIONS).letters <= set("ABCD")


@pytest.mark.parametrize(
    "text",
    [
        "I believe so.",
        "I",
        "I'm not sure.",
        "I think I would say that I agree.",
        "A man I know",
        "I'd say a dog",
    ],
)
def test_the_pronoun_and_the_article_are_no_letters(text: str) -> None:
    letters = "ABCDEFGHIJ" if text != "I" else "ABCD"
    assert read(text, letters).letters == frozenset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's Vitamin C.", "B"),
        ("Vitamin C", "B"),
        ("The answer is Vitamin A", "C"),
        ("I think it is vitamin C, so B", "B"),
        ("New York", "D"),
        ("It is New York", "D"),
        ("It is in York.", "E"),
        ("The answer is not New York but York", "E"),
    ],
)
def test_letters_in_the_options_own_texts_are_no_letters(text: str, expected: str) -> None:
    options = {"A": "Vitamin B", "B": "Vitamin C", "C": "Vitamin A", "D": "New York", "E": "York"}
    assert "".join(sorted(read(text, "ABCDE", options).letters)) == expected


@pytest.mark.parametrize(
    "choices",
    [
        CAPITALS,
        OPTIONS,
        {"label": list("ABCD"), "text": CAPITALS},
        '["London", "Paris", "Rome", "Berlin"]',
        {letter.lower(): text for letter, text in OPTIONS.items()},
    ],
)
def test_options_come_in_several_shapes(choices: Any) -> None:
    spec = suite.Choice(choices="choices")
    assert value(spec, "It is Paris.", "B", choices=choices) == 1
    assert value(spec, "B", "Paris", choices=choices) == 1
    assert value(spec, "E", "B", choices=choices) == 0


@pytest.mark.parametrize(
    ("choices", "target", "what"),
    [
        (CAPITALS, "E", "target: 'E' is neither one of the letters ABCD nor the text of an option"),
        (CAPITALS, "Oslo", "target: 'Oslo' is neither"),
        (["x"] * 11, "A", "choices: has 11 options for 10 letters"),
        ("no list", "A", "choices: must be a list of options"),
        ({"1": "x"}, "A", "choices: '1' is none of the letters"),
        ([], "A", "choices: is empty"),
        (7, "A", "choices: must be a list"),
    ],
)
def test_items_that_do_not_suit_are_told_by_name(choices: Any, target: str, what: str) -> None:
    with pytest.raises(TailraceError) as told:
        check_items(suite.Choice(choices="choices"), [answer("", target, choices=choices).item])
    assert str(told.value).startswith("choice: item 'q1': " + what)


def test_targets_without_options_must_be_letters() -> None:
    check_items(suite.Choice(), [answer("", "B").item, answer("", "(b)").item, answer("", "B) Paris").item])
    with pytest.raises(TailraceError, match="'Paris' is neither one of the letters"):
        check_items(suite.Choice(), [answer("", "Paris").item])
    with pytest.raises(TailraceError, match="choices: the item has no such column"):
        check_items(suite.Choice(choices="choices"), [answer("", "A").item])


def test_explanations_say_what_was_read() -> None:
    both, none, wrong = score(suite.Choice(), answer("A and B", "A"), answer("Well", "A"), answer("B", "A"))
    assert both.explanation == "names A and B, and not one of them"
    assert none.explanation == "names no option"
    assert (wrong.answer, wrong.explanation) == ("B", "B is not A")


@pytest.mark.parametrize(
    "piece",
    [
        "B ",
        "answer is ",
        "\n",
        "-",
        "no, ",
        "A and ",
        "wait wait ",
        "\\boxed{",
        "A) x\n",
        "is not ",
        "(",
        "Vitamin C ",
    ],
)
def test_degenerate_texts_take_no_time(piece: str) -> None:
    """pytest's own limit of time is what fails here."""
    read((piece * 4000)[:8000], "ABCD", {"A": "Vitamin C", "B": "x"})
