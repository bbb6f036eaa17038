"""A scorer of one's own: a function that is given an answer and says how good it is.

``suite.yaml`` names it as ``scorers:by_kind``. It runs in a process of its own, with this folder on its path, so it
may import whatever stands beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

#: A number: with a sign, with commas between thousands, with decimals.
NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:,\d{3})*(?:\.\d+)?")
LETTERS = "ABCD"
#: What an answer is worth that says the right thing and another one too.
HALF = 0.5


def by_kind(answer: str, target: str | Sequence[str] | None, item: dict[str, Any]) -> dict[str, Any]:
    """Judges each question by its kind, which is a column of the data set.

    ``target`` is the right answer, or a list where several are. What is returned could as well be a plain number or
    ``True``; with ``answer`` and ``explanation`` the report shows what was taken for the answer, and why.
    """
    targets = [target] if isinstance(target, str) else list(target or ())
    if not targets:
        raise ValueError(f"{item['id']} has no answer to compare with")  # counted apart, not as a wrong one
    if item["kind"] == "number":
        return _number(answer, targets)
    if item["kind"] == "choice":
        return _choice(answer, targets, item["choices"])
    said = next((each for each in targets if _says(answer, each)), None)
    return {"value": 0 if said is None else 1, "answer": said}


def _number(answer: str, targets: list[str]) -> dict[str, Any]:
    """The last number counts: answers often repeat the question first, as in "7 + 5 = 12"."""
    found = [float(number.replace(",", "").replace("−", "-")) for number in NUMBER.findall(answer)]
    wanted = float(targets[0])
    if not found:
        word = next((each for each in targets if _says(answer, each)), None)
        return {"value": 0 if word is None else 1, "answer": word, "explanation": "there is no number in it"}
    if found[-1] == wanted:
        return {"value": 1, "answer": f"{found[-1]:g}"}
    if wanted in found:
        return {
            "value": HALF,
            "answer": f"{found[-1]:g}",
            "explanation": "right, but not at its end",
        }
    return {"value": 0, "answer": f"{found[-1]:g}"}


def _choice(answer: str, targets: list[str], choices: list[str]) -> dict[str, Any]:
    """The letter, and the one option that it names. Small models say "C) Pluto" where Pluto is D."""
    found = re.search(rf"(?<!\w)([{LETTERS[: len(choices)]}])(?=[).:,]|\W*$)", answer)
    letter = choices[LETTERS.index(found[1])] if found else None
    named = [choice for choice in choices if _says(answer, choice)]
    chosen = {letter, named[0] if len(named) == 1 else None} - {None}
    if not chosen:
        return {"value": 0, "explanation": "it names no option"}
    right = sum(each in targets for each in chosen)
    said = " / ".join(sorted(map(str, chosen)))
    if right and len(chosen) > 1:
        return {"value": HALF, "answer": said, "explanation": "the letter is that of another option"}
    return {"value": right, "answer": said}


def _says(answer: str, words: str) -> bool:
    """As whole words, whatever the case."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", answer, re.IGNORECASE) is not None
