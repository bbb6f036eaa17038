"""Makes ``recordings.jsonl``, what ``tape:scripted`` says to the questions of ``suite.yaml``: no model is behind it.

The answers are made up by the rules below: mostly right, wrong more often where a question is hard, now and then long,
cut off, refused or failed, so that a report has all of it to show. What such a report says of ``tape:scripted`` is true
of no model. The same questions and prompts give the same file each time; a recording is found by the messages of a
request, so run this again after a change of questions or prompts:

    python examples/evaluation/record.py

To record a real model instead: ``tailrace tail ID --record FILE``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tailrace.evaluation.dataset import read_items
from tailrace.evaluation.loading import load
from tailrace.evaluation.prompts import Prompts

HERE = Path(__file__).parent
#: How many of a hundred answers are right.
RIGHT = {"easy": 97, "medium": 88, "hard": 60}
#: By prompt, how many of a hundred answers are short, and how many are nothing but the answer; the others are long.
SHORT = {"plain": (45, 10), "examples": (55, 40)}
#: Of a hundred long answers with the right number, how many name another one after it.
HESITANT = 25
#: What goes another way, by question and prompt.
REFUSED = {("sci-027", "plain"), ("geo-032", "plain"), ("geo-032", "examples")}
DECLINED = {("sci-035", "plain")}
CUT_OFF = {("arith-034", "plain"), ("arith-035", "plain"), ("geo-029", "plain"), ("sci-009", "examples")}
FAILED = {("geo-023", "plain"): "The model is overloaded and gave no answer."}
#: Times in milliseconds: until the first chunk, beyond it at most, and for a token.
FIRST, SPREAD, TOKEN = 180, 240, 12
#: Characters of a token, by rule of thumb; tokens that a message takes beside its text; and chunks of an answer.
CHARACTERS, AROUND, CHUNKS = 4, 4, 3


def recordings(folder: Path = HERE) -> str:
    """The whole file."""
    suite = load(folder / "suite.yaml").suite
    items = read_items(suite.dataset, folder)
    rows = [item.columns for item in items]
    lines = [
        recording(prompt.name, prompt.messages(item), item.columns, rows)
        for prompt in map(Prompts, suite.prompts)
        for item in items
    ]
    return "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)


def recording(
    prompt: str, asked: list[dict[str, Any]], item: dict[str, Any], items: list[dict[str, Any]]
) -> dict[str, Any]:
    """A line: the request that it is for, and the chunks of its answer."""
    request = {"messages": asked}
    place = (item["id"], prompt)
    if place in FAILED:
        return {"request": request, "status": 400, "error": {"message": FAILED[place], "code": "no_answer"}}
    field, finish = "content", "stop"
    text = answer(prompt, item, items)
    if place in REFUSED:
        text = "I'm sorry, but I can't help with that."
    elif place in DECLINED:
        field, text = "refusal", "I can't advise on acids."
    elif place in CUT_OFF:
        text, finish = (
            "To work this out, I first look at what the question asks for, and then I go through",
            "length",
        )
    tokens = -(-len(text) // CHARACTERS)
    at = FIRST + dice(*place, "first") * SPREAD // 100
    chunks: list[tuple[int, dict[str, Any]]] = []
    for piece in pieces(text):
        at += TOKEN * tokens // CHUNKS
        chunks.append((at, {"choices": [{"index": 0, "delta": {field: piece}}]}))
    chunks.append((at, {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}))
    prompt_tokens = sum(AROUND + len(message["content"]) // CHARACTERS for message in asked)
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
    }
    return {"request": request, "chunks": [*chunks, (at, {"choices": [], "usage": usage})]}


def answer(prompt: str, item: dict[str, Any], items: list[dict[str, Any]]) -> str:
    """What is said where nothing goes another way."""
    right = dice(item["id"], prompt, "right") < RIGHT[item["level"]]
    says = first(item) if right else wrong(item, items)
    style = dice(item["id"], prompt, "style")
    short, bare = SHORT[prompt]
    if item["kind"] == "choice":
        letter = "ABCD"[item["choices"].index(says)]
        if style < bare:
            return says
        return (
            f"{letter}) {says}"
            if style < short + bare
            else f"The answer is {letter}) {says}, I am fairly sure."
        )
    if style < bare:
        return says
    if style < short + bare:
        return f"It is {says}."
    if item["kind"] == "number":
        if right and dice(item["id"], prompt, "hesitates") < HESITANT:
            return f"I make that {says}. At first sight one might think of {wrong(item, items)}."
        return f"Taken step by step, this comes to {says}."
    return f"That is a good question. The answer that most books give is {says}, and I agree with them."


def wrong(item: dict[str, Any], items: list[dict[str, Any]]) -> str:
    """An answer that looks like one: the next option, a number that is near, what another question asks for."""
    if item["kind"] == "choice":
        choices: list[str] = item["choices"]
        return choices[(choices.index(item["answer"]) + 1) % len(choices)]
    if item["kind"] == "number":
        off = 1 + dice(item["id"], "off") % 3
        return f"{float(first(item)) + off:g}"
    alike = [each for each in items if (each["category"], each["kind"]) == (item["category"], item["kind"])]
    return first(alike[(alike.index(item) + 1) % len(alike)])


def first(item: dict[str, Any]) -> str:
    """The right answer, or the first of several."""
    right: str | list[str] = item["answer"]
    return right if isinstance(right, str) else right[0]


def dice(*about: str) -> int:
    """From 0 to 99, the same for the same words each time."""
    return int.from_bytes(hashlib.sha256("/".join(about).encode()).digest()[:4], "big") % 100


def pieces(text: str) -> list[str]:
    """The text in a few parts, cut before spaces."""
    words = text.split(" ")
    size = -(-len(words) // CHUNKS)
    parts = [" ".join(words[start : start + size]) for start in range(0, len(words), size)]
    return [part if number == 0 else f" {part}" for number, part in enumerate(parts)]


if __name__ == "__main__":
    file = HERE / "recordings.jsonl"
    file.write_text(recordings(), "utf-8")
    print(f"{file}: {file.read_text('utf-8').count(chr(10))} recordings")
