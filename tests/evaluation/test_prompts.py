"""Prompts: the messages of an item, and what a template can't do."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace import templating
from tailrace.errors import TailraceError
from tailrace.evaluation.prompts import Prompts
from tailrace.evaluation.shapes import Item
from tailrace.evaluation.suite import Prompt, Shot

SEEN = "a template sees input, question, target, id"
DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


def item(**columns: Any) -> Item:
    said = {"input": "What is 1+1?", **columns}
    return Item(id="q1", input=said["input"], targets=("2",), metadata={}, columns=said)


def rendered(template: str, **columns: Any) -> str:
    return Prompts(Prompt(template=template)).messages(item(**columns))[-1]["content"]


def told(template: str, **columns: Any) -> str:
    with pytest.raises(TailraceError) as error:
        rendered(template, **columns)
    return str(error.value)


def test_messages_are_system_shots_and_the_question() -> None:
    prompt = Prompt(
        system="You know {{ topic }}.",
        few_shot=(Shot(user="{{ topic }}?", assistant="Yes."), Shot(user="Sure?", assistant="{{ 'Sure' }}.")),
        template="{{ input }} ({{ id }})",
    )
    assert Prompts(prompt).messages(item(topic="sums")) == [
        {"role": "system", "content": "You know sums."},
        {"role": "user", "content": "sums?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Sure."},
        {"role": "user", "content": "What is 1+1? (q1)"},
    ]


def test_the_default_prompt_is_the_input() -> None:
    assert Prompts(Prompt()).messages(item()) == [{"role": "user", "content": "What is 1+1?"}]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_a_text_goes_as_it_is(text: str) -> None:
    """Nothing of a column is taken for a template, or escaped."""
    assert rendered("{{ input }}", input=text) == text


@pytest.mark.parametrize(
    ("targets", "found"), [((), "None"), (("2",), "2"), (("2", "two"), "['2', 'two']"), (("",), "")]
)
def test_the_target_is_a_text_or_a_list_or_none(targets: tuple[str, ...], found: str) -> None:
    one = Item(id="1", input="q", targets=targets, metadata={}, columns={"input": "q", "target": "column"})
    assert Prompts(Prompt(template="[{{ target }}]")).messages(one)[0]["content"] == f"[{found}]"


def test_what_input_and_id_mean_goes_before_columns_of_that_name() -> None:
    columns = {"question": "asked", "input": "column", "id": "column", "key": 7}
    one = Item(id="7", input="asked", targets=(), metadata={}, columns=columns)
    assert (
        Prompts(Prompt(template="{{ input }} {{ id }} {{ key }}")).messages(one)[0]["content"] == "asked 7 7"
    )


def test_letters_stand_before_options() -> None:
    template = "{% for letter, text in choices | letters %}{{ letter }}) {{ text }}\n{% endfor %}"
    assert rendered(template, choices=["red", "blue"]) == "A) red\nB) blue\n"
    assert rendered("{{ (options.split('|') | letters)[1][0] }}", options="red|blue") == "B"
    assert rendered("{{ (range(26) | letters | last)[0] }}") == "Z"


def test_the_documented_multiple_choice_prompt_renders() -> None:
    (template,) = re.findall(r"```\n(\{\{ question.*?letters.*?)```", DOCS.read_text(), re.DOTALL)
    assert rendered(template, question="Which is red?", choices=["grass", "blood"]) == (
        "Which is red?\nA) grass\nB) blood\nAnswer with the letter."
    )


@pytest.mark.parametrize("choices", ["red", {"a": 1}, 3, None, list(range(27))])
def test_letters_take_a_list_of_up_to_26(choices: Any) -> None:
    assert "letters takes" in told("{{ choices | letters }}", choices=choices)


def test_json_is_written_plainly() -> None:
    value = {"a": "<ä> & 'b'", "c": [1.5, None, True]}
    assert json.loads(rendered("{{ x | tojson }}", x=value)) == value
    assert rendered("{{ x | tojson }}", x=value) == '{"a":"<ä> & \'b\'","c":[1.5,null,true]}'
    assert rendered("{{ x | tojson(indent=1) }}", x=[1]) == "[\n 1\n]"


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ questoin }}", f"'questoin' is undefined (did you mean 'question'?); {SEEN}"),
        ("{{ nothing_like_it }}", f"'nothing_like_it' is undefined; {SEEN}"),
        ("{{ nothing_like_it | tojson }}", f"'nothing_like_it' is undefined; {SEEN}"),
        ("{{ question.text }}", f"'str object' has no attribute 'text'; {SEEN}"),
        ("a\nb\n{{ 1 / 0 }}", "division by zero (line 3 of the template)"),
        ("{{ question + 1 }}", 'can only concatenate str (not "int") to str (line 1 of the template)'),
        ("  \n", "the text is blank"),
        ("{% if false %}x{% endif %}", "the text is blank"),
    ],
)  # fmt: skip
def test_an_error_names_prompt_field_and_item(template: str, problem: str) -> None:
    assert told(template, question="q") == f"prompt 'default', template, item 'q1': {problem}"


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (Prompt(name="p", system="{{ x }}"), "system"),
        (Prompt(name="p", few_shot=(Shot(user="a", assistant="b"), Shot(user="{{ x }}", assistant="b"))),
         "few_shot[1].user"),
        (Prompt(name="p", few_shot=(Shot(user="a", assistant="{{ x }}"),)), "few_shot[0].assistant"),
    ],
)  # fmt: skip
def test_the_field_that_fails_is_named(prompt: Prompt, field: str) -> None:
    with pytest.raises(
        TailraceError, match=f"^prompt 'p', {field.replace('[', '.').replace(']', '.')}, item 'q1': "
    ):
        Prompts(prompt).messages(item())


def test_what_is_no_template_is_told_when_it_is_compiled() -> None:
    with pytest.raises(
        TailraceError, match=r"^prompt 'default', system: line 2 of the template: unexpected '}'$"
    ):
        Prompts(Prompt(system="a\n{{ b }"))


@pytest.mark.parametrize(
    "other", ["{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}", "{% from 'x' import y %}"]
)
def test_there_is_one_template(other: str) -> None:
    with pytest.raises(TailraceError, match="isn't possible: there is one template"):
        Prompts(Prompt(template=other))


# -------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    "template",
    [
        "{{ ().__class__.__base__.__subclasses__() }}",
        "{{ input.__init__.__globals__ }}",
        "{{ letters }}",
        "{{ items.append(1) }}",
        "{{ columns.clear() }}",
        "{{ '{0.__class__}'.format(input) }}",
    ],
)
def test_a_template_reaches_and_changes_nothing_but_its_text(template: str) -> None:
    columns: dict[str, Any] = {"items": [1], "columns": {"a": 1}}
    told(template, **columns)
    assert columns == {"items": [1], "columns": {"a": 1}}


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
        ("{{ 'x' * 10**9 }}", "makes a text or list that is too long"),
        ("{{ 10**9 * [1] }}", "makes a text or list that is too long"),
        ("{{ 10 ** 1000000000 }}", "makes a number that is too long"),
        ("{{ 'x' | center(20000000) }}", "makes more than 10,000,000 characters"),
        ("{% for i in range(3) %}{{ 'x' * 5000000 }}{% endfor %}", "makes more than 10,000,000 characters"),
    ],
)
def test_a_template_makes_only_so_much(template: str, problem: str) -> None:
    begun = time.monotonic()
    assert problem in told(template)
    assert time.monotonic() - begun < 5


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def test_a_rendering_ends_when_it_has_computed_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templating, "CPU_SECONDS", 0.2)
    assert (
        told(ENDLESS)
        == "prompt 'default', template, item 'q1': computes for more than 0.2 s (line 1 of the template)"
    )


def test_the_limit_leaves_timer_and_handler_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templating, "CPU_SECONDS", 0.1)

    def own(_number: int, _frame: object) -> None: ...

    before = signal.signal(signal.SIGVTALRM, own)
    signal.setitimer(signal.ITIMER_VIRTUAL, 1000, 500)
    try:
        told(ENDLESS)
        rendered("{{ input }}")
        assert signal.getsignal(signal.SIGVTALRM) is own
        left, interval = signal.getitimer(signal.ITIMER_VIRTUAL)
        assert 900 < left < 1001  # what it counts is rounded up to a tick
        assert interval == 500
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def test_other_threads_render_too() -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(rendered("{{ input }}")))
    thread.start()
    thread.join()
    assert found == ["What is 1+1?"]
