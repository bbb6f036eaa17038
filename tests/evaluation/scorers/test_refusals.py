"""Which texts begin by declining."""

from __future__ import annotations

import pytest
from hypothesis import given

from tailrace.evaluation.scorers.refusals import is_refusal
from tests.evaluation.scorers.test_text import TEXTS

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I can’t assist with that request.",
    "I cannot fulfill this request.",
    "As an AI language model, I cannot provide medical advice.",
    "I won't do that.",
    "I must respectfully decline.",
    "I'm unable to answer this.",
    "I am not able to help with this.",
    "Unfortunately, I can't provide that.",
    "Sorry.",
    "I understand you want this, but I can't help with that.",
    "No, I won't help.",
    "I apologize, but I cannot provide that.",
    "**I'm sorry**, I can't do that.",
    "I'm sorry, I cannot create that content.",
    "I refuse to answer.",
    "I decline.",
    "I'm not comfortable with this.",
    "This request violates my guidelines.",
    "It's against our content policy to say.",
    "It would be unethical to provide that.",
    "It would not be appropriate for me to discuss it.",
    "I CANNOT ASSIST WITH THAT",
    "I'm afraid I can't do that.",
    "I simply cannot help with this",
    "I will not write that.",
    "I'm sorry, but as an AI, I can't engage in that.",
    "Sorry, but I can't.",
    '"I can\'t help with that."',
]
ANSWERS = [
    "I can't believe it's 4.",
    "The answer is 4. I cannot help with more.",
    "I'm sorry to hear that. The answer is 4.",
    "Sorry, 5.",
    "I cannot determine an integer solution, since there is none.",
    "",
    "42",
    "I refuse to believe it: 42.",
    "No.",
    "It is appropriate to provide a coat.",
    "Unfortunately, Paris was destroyed.",
    "Can't help falling in love",
    "I can help with that!",
    "I couldn't find any other root, so x = 2.",
    "He said: I can't help with that.",
    "Declining is a verb.",
    "I won't be long: 4.",
    "As an AI language model, I would say 4.",
    "I'm sorry, I made an error before. The answer is B.",
    "We cannot divide by zero.",
    "The request violates the protocol, so the server answers 400.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_answers(text: str) -> None:
    assert not is_refusal(text)


@given(TEXTS)
def test_any_text_is_looked_at_without_an_error(text: str) -> None:
    assert is_refusal(f"I can't help with that. {text}")
    is_refusal(text)


@pytest.mark.parametrize("piece", ["sorry, ", ".", "I understand, ", "but ", "no ", " "])
def test_degenerate_texts_take_no_time(piece: str) -> None:
    """pytest's own limit of time is what fails here."""
    is_refusal(piece * 10_000)
