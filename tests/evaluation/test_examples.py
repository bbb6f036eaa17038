"""``examples/evaluation``: the questions are right, and what ships beside them fits."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import tomllib
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import pytest

from schemas.providers import load_providers
from tailrace.embedded import providers
from tailrace.evaluation.dataset import read_items
from tailrace.evaluation.loading import load
from tailrace.evaluation.prompts import Prompts
from workers.providers.kind import DONE, Call
from workers.providers.replay import Replay, read_recordings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "evaluation"
#: The largest file of recordings that a repository should carry, in bytes.
MOST_BYTES = 500_000


def script(name: str) -> Any:
    """A Python file of the example."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / "questions.jsonl").read_text("utf-8").splitlines()]


ROWS = rows()
BY_ID: dict[str, dict[str, Any]] = {row["id"]: row for row in ROWS}
CHOICES = [row for row in ROWS if row["kind"] == "choice"]


def answers(row: dict[str, Any]) -> list[str]:
    return row["answer"] if isinstance(row["answer"], list) else [row["answer"]]


class TestQuestions:
    def test_there_are_three_categories_of_forty(self) -> None:
        assert Counter(row["category"] for row in ROWS) == {"arithmetic": 40, "geography": 40, "science": 40}

    def test_none_is_there_twice(self) -> None:
        for column in ("id", "question"):
            assert [value for value, n in Counter(row[column] for row in ROWS).items() if n > 1] == []

    def test_ids_are_numbered_within_their_category(self) -> None:
        begins = {"arithmetic": "arith", "geography": "geo", "science": "sci"}
        counted: Counter[str] = Counter()
        for row in ROWS:
            counted[row["category"]] += 1
            assert row["id"] == f"{begins[row['category']]}-{counted[row['category']]:03}"

    def test_columns_are_those_of_their_kind(self) -> None:
        usual = {"id", "question", "answer", "category", "kind", "level"}
        for row in ROWS:
            assert row.keys() == (usual | {"choices"} if row["kind"] == "choice" else usual), row
            assert row["kind"] in ("number", "text", "choice")
            assert row["question"].endswith("?")
            assert answers(row)
            assert all(isinstance(each, str) and each for each in answers(row))

    def test_most_are_easy_and_all_levels_are_there(self) -> None:
        levels = Counter(row["level"] for row in ROWS)
        assert levels.keys() == {"easy", "medium", "hard"}
        assert levels["easy"] + levels["medium"] >= 0.8 * len(ROWS)

    @pytest.mark.parametrize("row", CHOICES, ids=[row["id"] for row in CHOICES])
    def test_an_answer_is_one_of_four_options(self, row: dict[str, Any]) -> None:
        assert len(set(row["choices"])) == 4
        assert row["answer"] in row["choices"]

    def test_no_letter_is_a_good_guess(self) -> None:
        """Who always says A is right in a quarter of them."""
        letters = Counter("ABCD"[row["choices"].index(row["answer"])] for row in CHOICES)
        assert max(letters.values()) - min(letters.values()) <= 2

    def test_no_question_has_its_answer_in_it(self) -> None:
        told = [
            row["id"]
            for row in ROWS
            for answer in answers(row)
            if re.search(rf"(?<![\w.]){re.escape(answer)}(?![\w.])", row["question"], re.IGNORECASE)
        ]
        assert told == []

    def test_numbers_are_numbers(self) -> None:
        for row in ROWS:
            if row["kind"] == "number":
                assert math.isfinite(float(answers(row)[0]))


# ----------------------------------------------------------------------------------------------- arithmetic

#: Questions that are told as a story, worked out here.
STORIES = {
    "arith-033": Fraction(6 * 5),
    "arith-034": Fraction((16 * 60 + 5) - (14 * 60 + 20)),
    "arith-035": Fraction("7.50") / 3,
    "arith-036": Fraction(12 - 5),
}
N = r"(-?[\d.,]+)"
FORMS = {
    rf"What is {N} squared\?": lambda a: a**2,
    rf"What is {N} to the power of {N}\?": lambda a, b: a**b,
    rf"What is the square root of {N}\?": lambda a: Fraction(math.isqrt(int(a))),
    rf"What is {N}% of {N}\?": lambda a, b: a * b / 100,
    rf"What is half of {N}\?": lambda a: a / 2,
    rf"What is the remainder when {N} is divided by {N}\?": lambda a, b: a % b,
}


def worked_out(question: str) -> Fraction | None:
    """What a question comes to, None where it has none of the forms."""
    for form, rule in FORMS.items():
        if found := re.fullmatch(form, question):
            return rule(*map(number, found.groups()))
    found = re.fullmatch(r"What is ([-\d.,+×÷() ]+)\?", question)
    return None if found is None else Sum(found[1]).value()


def number(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


class Sum:
    """A parser of ``2 + 3 × (4 - 1)``: products before sums, from left to right."""

    def __init__(self, text: str) -> None:
        self._left = re.findall(r"[\d.,]+|[-+×÷()]", text)

    def value(self) -> Fraction:
        found = self._sum()
        assert not self._left
        return found

    def _sum(self) -> Fraction:
        found = self._product()
        while self._left and self._left[0] in "+-":
            found = found + self._product() if self._left.pop(0) == "+" else found - self._product()
        return found

    def _product(self) -> Fraction:
        found = self._one()
        while self._left and self._left[0] in "×÷":
            found = found * self._one() if self._left.pop(0) == "×" else found / self._one()
        return found

    def _one(self) -> Fraction:
        first = self._left.pop(0)
        if first == "-":
            return -self._one()
        if first == "(":
            found = self._sum()
            assert self._left.pop(0) == ")"
            return found
        return number(first)


class TestArithmetic:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("2 + 3 × 4", 14),
            ("(2 + 3) × 4", 20),
            ("-3 + 10", 7),
            ("8 - 3 - 2", 3),
            ("1,234 ÷ 2", 617),
            ("8 ÷ 4 ÷ 2", 1),
        ],
    )
    def test_the_parser_knows_what_goes_first(self, text: str, value: int) -> None:
        assert Sum(text).value() == value

    def test_answers_are_what_the_questions_come_to(self) -> None:
        """All that ask for a number: most by their form, the stories worked out above."""
        asked = [row for row in ROWS if row["category"] == "arithmetic" and row["kind"] == "number"]
        found = {row["id"]: STORIES.get(row["id"], worked_out(row["question"])) for row in asked}
        assert found == {row["id"]: Fraction(row["answer"]) for row in asked}
        assert len(asked) - len(STORIES) >= 30

    @pytest.mark.parametrize(
        ("id", "holds"),
        [
            ("arith-037", lambda n, _: n > 1 and all(n % d for d in range(2, int(n)))),
            ("arith-038", lambda n, others: n == max(others)),
            ("arith-039", lambda n, _: n % 9 == 0),
            ("arith-040", lambda n, _: n == Fraction(3, 4)),
        ],
    )
    def test_one_option_and_no_other_is_right(self, id: str, holds: Any) -> None:
        row = BY_ID[id]
        values = {choice: Fraction(choice) for choice in row["choices"]}
        assert [choice for choice, n in values.items() if holds(n, values.values())] == [row["answer"]]

    def test_each_is_checked_here(self) -> None:
        choices = {row["id"] for row in CHOICES if row["category"] == "arithmetic"}
        assert choices == {"arith-037", "arith-038", "arith-039", "arith-040"}


# ----------------------------------------------------------------------------------------------- the suite


@pytest.fixture(scope="module")
def suite() -> dict[str, Any]:
    """The file as it stands, short forms and all."""
    yaml: Any = importlib.import_module("ruamel.yaml").YAML(typ="safe")
    return yaml.load(FOLDER / "suite.yaml")


@pytest.fixture(scope="module")
def record() -> Any:
    return script("record")


@pytest.fixture(scope="module")
def tape() -> Replay:
    """The provider of providers.toml, all at once."""
    path = FOLDER / "providers.toml"
    provider = load_providers(path.read_text("utf-8"), source=str(path)).providers["tape"]
    return Replay(provider.model_copy(update={"speed": 0}), httpx.AsyncHTTPTransport())


class TestSuite:
    def test_it_is_what_a_run_reads(self, suite: dict[str, Any]) -> None:
        """Its shape, its items and its messages, which are those that record.py makes recordings for."""
        read = load(FOLDER / "suite.yaml").suite
        assert read.name == suite["name"]
        assert [scorer.label for scorer in read.scorers] == ["by_kind", "includes", "exact"]
        items = read_items(read.dataset, FOLDER)
        assert [item.id for item in items] == list(BY_ID)
        assert [list(item.targets) for item in items] == [answers(row) for row in ROWS]
        recorded = {json.dumps(each.request) for each in read_recordings(FOLDER / "recordings.jsonl")}
        made = [Prompts(prompt).messages(item) for prompt in read.prompts for item in items]
        assert {json.dumps({"messages": messages}) for messages in made} == recorded

    def test_its_models_are_those_of_the_providers(self, suite: dict[str, Any], tmp_path: Path) -> None:
        """With the local model beside the tape; both have a price, so that a report can tell what an answer costs."""
        merged = providers.choose(tmp_path, str(FOLDER / "providers.toml"), 41_000)
        found = load_providers(merged.read_text("utf-8"), source=str(merged))
        models = [model if isinstance(model, str) else model["model"] for model in suite["models"]]
        assert [found.resolve(model).provider for model in models] == ["local", "tape"]
        for model in models:
            resolved = found.resolve(model)
            provider = found.providers[resolved.provider]
            assert provider.listed(resolved.model)
            assert provider.price(resolved.model) is not None
        assert found.providers["tape"].file == str(FOLDER / "recordings.jsonl")

    def test_its_scorer_is_there(self, suite: dict[str, Any]) -> None:
        module, _, name = suite["scorers"][0]["function"].partition(":")
        assert callable(getattr(script(module), name))

    def test_the_makefile_runs_it(self) -> None:
        assert tomllib.loads((FOLDER / "providers.toml").read_text("utf-8"))["providers"].keys() == {"tape"}
        makefile = (ROOT / "Makefile").read_text("utf-8")
        for path in ("examples/evaluation/suite.yaml", "examples/evaluation/providers.toml"):
            assert path in makefile
            assert (ROOT / path).is_file()


class TestRecordings:
    def test_they_are_what_the_script_makes(self, record: Any) -> None:
        file = FOLDER / "recordings.jsonl"
        assert file.read_text("utf-8") == record.recordings()
        assert file.stat().st_size < MOST_BYTES

    async def test_each_question_has_one_under_each_prompt(self, tape: Replay) -> None:
        """Played by the provider itself; what they come to has everything that a report tells apart."""
        seen: Counter[str] = Counter()
        by_kind = script("scorers").by_kind
        read = load(FOLDER / "suite.yaml").suite
        for prompt in map(Prompts, read.prompts):
            for item in read_items(read.dataset, FOLDER):
                seen[await played(tape, prompt.messages(item), item.columns, by_kind)] += 1
        assert seen.total() == 2 * len(ROWS)
        assert seen.keys() == {"right", "partly", "wrong", "truncated", "refused", "failed"}
        assert 0.6 < seen["right"] / seen.total() < 0.95


async def played(tape: Replay, messages: list[dict[str, Any]], row: dict[str, Any], by_kind: Any) -> str:
    """What became of a question, in a word."""
    if recording(tape, messages).status != 200:
        return "failed"
    params = {"messages": messages, "temperature": 0, "max_tokens": 24}
    async with tape.stream(Call(params, "scripted")) as stream:
        chunks = [json.loads(data) async for piece in stream for data in piece if data != DONE]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    if choices[-1]["finish_reason"] == "length":
        return "truncated"
    if "can't help" in text or any("refusal" in choice["delta"] for choice in choices):
        return "refused"
    value = by_kind(text, row["answer"], row)["value"]
    return {0: "wrong", 1: "right"}.get(value, "partly")


def recording(tape: Replay, messages: list[dict[str, Any]]) -> Any:
    return tape._find({"messages": messages, "temperature": 0, "model": "scripted"})


class TestScorer:
    """``by_kind``, which shows how one is written."""

    @pytest.mark.parametrize(
        ("id", "answer", "value"),
        [
            ("arith-004", "17 + 25 = 42", 1),
            ("arith-004", "42", 1),
            ("arith-004", "The sum is 42.", 1),
            ("arith-004", "17 + 25 = 32", 0),
            ("arith-004", "42, not 52", 0.5),
            ("arith-004", "", 0),
            ("arith-006", "10,000", 1),
            ("arith-006", "10000.0", 1),
            ("arith-010", "−7", 1),
            ("arith-010", "7", 0),
            ("geo-001", "The capital is paris.", 1),
            ("geo-001", "Parisian cafés", 0),
            ("geo-010", "Brasília", 1),
            ("geo-010", "brasilia", 1),
            ("sci-001", "There are eight planets.", 1),
            ("sci-017", "CO2", 1),
            ("sci-032", "D", 1),
            ("sci-032", "(D) Pluto", 1),
            ("sci-032", "The correct answer is D) Pluto.", 1),
            ("sci-032", "Pluto", 1),
            ("sci-032", "C) Pluto", 0.5),
            ("sci-032", "A", 0),
            ("sci-032", "A good question", 0),
            ("sci-032", "Venus or Pluto", 0),
            ("sci-032", "", 0),
        ],
    )
    def test_it_judges(self, id: str, answer: str, value: float) -> None:
        row = BY_ID[id]
        assert script("scorers").by_kind(answer, row["answer"], row)["value"] == value

    def test_every_right_answer_is_right(self) -> None:
        by_kind = script("scorers").by_kind
        for row in ROWS:
            for answer in answers(row):
                assert by_kind(answer, row["answer"], row)["value"] == 1, (row["id"], answer)

    def test_a_row_without_an_answer_is_an_error(self) -> None:
        """Not a wrong answer."""
        with pytest.raises(ValueError, match="geo-001"):
            script("scorers").by_kind("Paris", None, BY_ID["geo-001"])
