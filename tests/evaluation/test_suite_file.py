"""Suite files: what may stand in one, and what is told of one that is wrong."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tailrace.errors import TailraceError
from tailrace.evaluation.loading import Loaded, Overrides, dump, load, restore
from tailrace.evaluation.marked import parse
from tailrace.evaluation.suite import Dataset, Judge, Model, Prompt, Shot, Suite
from tailrace.evaluation.wording import SCORERS

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"
#: The least that a suite says.
LEAST = "name: s\ndataset: d.jsonl\nmodels: m\nscorers: exact\n"


def write(folder: Path, text: str | bytes, name: str = "suite.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def loaded(folder: Path, text: str, overrides: Overrides | None = None) -> Loaded:
    return load(write(folder, text), overrides)


def suite(folder: Path, text: str, overrides: Overrides | None = None) -> Suite:
    return loaded(folder, text, overrides).suite


def told(
    folder: Path, text: str | bytes, overrides: Overrides | None = None, name: str = "suite.yaml"
) -> str:
    """What is wrong, without the folder."""
    path = write(folder, text, name)
    with pytest.raises(TailraceError) as error:
        load(path, overrides)
    return str(error.value).replace(f"{folder}/", "")


# ------------------------------------------------------------------------------------------- what may stand there


def test_a_pattern_may_have_the_target_in_it_as_it_stands(tmp_path: Path) -> None:
    text = LEAST.replace("exact", r"{type: regex, pattern: '\b{{ target | escape_regex }}\b'}")
    found = suite(tmp_path, text)
    assert found.scorers[0] == SCORERS["regex"](pattern=r"\b{{ target | escape_regex }}\b")


def test_the_least_suite_has_the_documented_defaults(tmp_path: Path) -> None:
    found = suite(tmp_path, LEAST)
    assert found.prompts == (Prompt(name="default", template="{{ input }}"),)
    assert found.models == (Model(model="m"),)
    assert [scorer.label for scorer in found.scorers] == ["exact"]
    assert found.dataset == Dataset(path=Path("d.jsonl"))
    assert (found.samples, found.max_concurrency, found.max_error_rate, found.budget) == (1, 64, 0.5, None)


def test_the_documented_example_loads(tmp_path: Path) -> None:
    example = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)[0]
    found = loaded(tmp_path, example)
    assert found.text == example
    assert [model.label for model in found.suite.models] == ["smollm2", "smollm2-warm"]
    assert found.suite.models[1].params == {"temperature": 0.8}
    assert found.suite.dataset.filter == {"split": "test", "level": (1, 2)}
    judge = found.suite.scorers[1]
    assert isinstance(judge, Judge)
    assert judge.grades == {"C": 1, "I": 0}
    assert found.suite.prompts[0].template == "{{ question }}\nAnswer with the number alone.\n"


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        (None, Suite),
        ("dataset", Dataset),
        ("prompts", Prompt),
        ("models", Model),
        *[("scorers", scorer) for scorer in SCORERS.values()],
    ],
)
def test_every_field_is_documented(part: str | None, shape: type[BaseModel]) -> None:
    table = DOCS.read_text().partition("### Fields")[2].partition("###")[0]
    sections = re.split(r"\| \*\*`(\w+)`\*\* \|", table)
    rows = dict(zip([None, *sections[1::2]], sections[0::2], strict=True))[part]
    fields = [field.alias or name for name, field in shape.model_fields.items()]
    assert [field for field in fields if f"| `{field}` |" not in rows] == []


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("models: a:b", "models", (Model(model="a:b"),)),
        ("models: [a, b]", "models", (Model(model="a"), Model(model="b"))),
        ("models: {model: a, name: x}", "models", (Model(model="a", name="x"),)),
        ("prompts: 'Say {{ x }}'", "prompts", (Prompt(template="Say {{ x }}"),)),
        ("prompts: ['{{ x }}', {name: b}]", "prompts", (Prompt(template="{{ x }}"), Prompt(name="b"))),
        ("prompts: {system: Be kind.}", "prompts", (Prompt(system="Be kind."),)),
        ("prompts: {few_shot: [{user: a, assistant: b}]}", "prompts",
         (Prompt(few_shot=(Shot(user="a", assistant="b"),)),)),
        ("scorers: f1", "scorers", (SCORERS["f1"](),)),
        ("scorers: [exact, {type: numeric, tolerance: 1}]", "scorers",
         (SCORERS["exact"](), SCORERS["numeric"](tolerance=1))),
        ("scorers: {type: judge, model: j}", "scorers", (SCORERS["judge"](model="j"),)),
        ("dataset: a/b.csv", "dataset", Dataset(path=Path("a/b.csv"))),
        ("tags: nightly", "tags", ("nightly",)),
        ("tags: [' a ', b]", "tags", ("a", "b")),
        ("params: {seed: 0x10, top_p: 1e-1, stop: yes, logit_bias: {5: -1}}", "params",
         {"seed": 16, "top_p": 0.1, "stop": "yes", "logit_bias": {"5": -1}}),
        ("params: {user: 2026-01-31, n: 1}", "params", {"user": "2026-01-31", "n": 1}),
        ("budget: 2", "budget", 2.0),
        ("description: &d Text\ntags: [*d]", "tags", ("Text",)),
        ("params: &p {seed: 1, top_k: 2}\nmodels: {model: m, params: {<<: *p, seed: 3}}", "models",
         (Model(model="m", params={"seed": 3, "top_k": 2}),)),
    ],
)  # fmt: skip
def test_short_forms_and_values(tmp_path: Path, text: str, field: str, value: Any) -> None:
    said = {line.partition(":")[0] for line in text.splitlines()}
    rest = "".join(line for line in LEAST.splitlines(keepends=True) if line.partition(":")[0] not in said)
    found = suite(tmp_path, f"{rest}{text}\n")
    assert getattr(found, field) == value
    assert type(getattr(found, field)) is type(value)


def test_texts_of_files_stand_in_the_suite_itself(tmp_path: Path) -> None:
    """So that a run's folder needs none of them."""
    write(tmp_path, "Be {{ tone }}.\n", "prompts/system.txt")
    write(tmp_path, "\ufeffQ: {{ input }}", "prompts/question.j2")
    write(tmp_path, "Grade {{ answer }}", "rubric.txt")
    write(tmp_path, '{\n\t"type": "object",\n\t"required": ["\\ud83d\\ude00"]\n}', "answer.json")
    found = suite(
        tmp_path,
        "name: s\ndataset: d.jsonl\nmodels: m\n"
        "prompts:\n"
        "  - system: {file: prompts/system.txt}\n"
        "    template: {file: prompts/question.j2}\n"
        "    few_shot: [{user: {file: prompts/question.j2}, assistant: A}]\n"
        "  - {name: b, template: {file: ./prompts/question.j2}}\n"
        "scorers:\n"
        "  - {type: judge, model: j, rubric: {file: rubric.txt}}\n"
        "  - {type: json_schema, schema: answer.json}\n",
    )
    assert found.prompts[0].system == "Be {{ tone }}.\n"
    assert found.prompts[0].template == found.prompts[0].few_shot[0].user == "Q: {{ input }}"
    assert found.prompts[1].template == "Q: {{ input }}"
    judge, schema = found.scorers
    assert getattr(judge, "rubric") == "Grade {{ answer }}"  # noqa: B009
    assert getattr(schema, "json_schema") == {"type": "object", "required": ["😀"]}  # noqa: B009


def test_a_prompt_may_be_a_file_alone(tmp_path: Path) -> None:
    write(tmp_path, "Q: {{ input }}", "q.j2")
    assert suite(tmp_path, LEAST + "prompts: {file: q.j2}\n").prompts == (Prompt(template="Q: {{ input }}"),)


def test_json_is_yaml_also_with_tabs(tmp_path: Path) -> None:
    said = {
        "name": "s",
        "dataset": {"path": "d.jsonl"},
        "models": ["m"],
        "scorers": ["exact"],
        "tags": ["a\tb 😀"],
    }
    path = write(tmp_path, json.dumps(said, indent="\t"), "suite.json")
    assert load(path).suite.tags == ("a\tb 😀",)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(string.printable, max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
def test_whatever_is_json_is_the_same_in_yaml(value: Any) -> None:
    root, problems = parse(json.dumps(value))
    assert problems == []
    assert root is not None
    found = root.plain()
    assert found == value
    assert json.dumps(found) == json.dumps(value)  # 1 is neither true nor 1.0


# --------------------------------------------------------------------------------------------------- overrides

SUITE = (
    LEAST.replace("models: m\n", "")
    + "models:\n  - small\n  - {model: big, name: warm, params: {temperature: 1}}\n"
    + "  - {model: big, name: cold, params: {temperature: 0}}\nsamples: 2\ntags: [a]\n"
)


def test_options_go_before_the_file(tmp_path: Path) -> None:
    overrides = Overrides(samples=5, limit=7, budget=0.5, max_concurrency=3, tags=["b", "a", "b"])
    found = suite(tmp_path, SUITE, overrides)
    assert (found.samples, found.dataset.limit, found.budget, found.max_concurrency) == (5, 7, 0.5, 3)
    assert found.tags == ("a", "b")
    assert len(found.models) == 3


@pytest.mark.parametrize(
    ("names", "labels", "params"),
    [
        (["warm"], ["warm"], [{"temperature": 1}]),
        (["big"], ["warm", "cold"], [{"temperature": 1}, {"temperature": 0}]),
        (["new", "small", "new"], ["new", "small"], [{}, {}]),
        (["cold", "big"], ["cold", "warm"], [{"temperature": 0}, {"temperature": 1}]),
    ],
)
def test_models_named_take_the_place_of_the_files(
    tmp_path: Path, names: list[str], labels: list[str], params: list[dict[str, Any]]
) -> None:
    """A label, then a model, that stands in the file keeps its parameters."""
    found = suite(tmp_path, SUITE, Overrides(models=names))
    assert [model.label for model in found.models] == labels
    assert [model.params for model in found.models] == params


def test_a_file_without_models_is_whole_with_those_named(tmp_path: Path) -> None:
    text = LEAST.replace("models: m\n", "")
    assert suite(tmp_path, text, Overrides(models=["x"])).models == (Model(model="x"),)


def test_what_is_wrong_with_an_option_names_it(tmp_path: Path) -> None:
    overrides = Overrides(samples=0, limit=0, budget=-1.0, max_concurrency=0, models=["warm"], tags=["t"])
    text = SUITE.replace("{temperature: 1}", "{temperature: 1, n: 2}")
    assert sorted(told(tmp_path, text, overrides).splitlines()) == [
        "--budget: must be more than 0",
        "--limit: must be at least 1",
        "--max-concurrency: must be at least 1",
        "--samples: must be at least 1",
        "suite.yaml:6: models[1].params.n: must be 1: samples says how often each item is asked",
    ]


# ----------------------------------------------------------------------------------------------------- errors

SCORER_TYPES = "exact, includes, regex, choice, numeric, json_schema, f1, judge, function"
SUITE_FIELDS = (
    "name, description, dataset, prompts, models, params, samples, scorers, max_concurrency, budget, "
    "max_error_rate, tags"
)
UNDER_PARAMS = "what its requests say goes under params"
NO_TYPE = "is no valid JSON Schema: 'nope' is not valid under any of the given schemas"
NO_NODE = "expected the node content, but found '}' while parsing a flow node"
NAME_RULE = "must be up to 100 letters, digits and any of . _ : @ + - and begin with a letter or digit"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        # fields that are not there, and those that are there and unknown
        ("dataset: {input: q}", "4: dataset.path: is missing"),
        ("prompts:\n  - name: a\n    few_shot:\n      - user: hi", "8: prompts[0].few_shot[0].assistant: is missing"),
        ("prompts: {few_shot: [{user: hi}]}", "5: prompts.few_shot[0].assistant: is missing"),
        ("models:\n  - a\n  -\n    name: x", "7: models[1].model: is missing"),
        ("sampels: 2", "5: sampels: is unknown; did you mean 'samples'?"),
        ("model: x", "5: model: is unknown; did you mean 'models'?"),
        ("zzz: 2", f"5: zzz: is unknown; there are {SUITE_FIELDS}"),
        ("dataset: {path: x, inptu: q}", "4: dataset.inptu: is unknown; did you mean 'input'?"),
        ("prompts: {sytem: q}", "5: prompts.sytem: is unknown; did you mean 'system'?"),
        ("prompts: [{few_shot: [{user: a, assistant: b, asistant: c}]}]",
         "5: prompts[0].few_shot[0].asistant: is unknown; did you mean 'assistant'?"),
        ("models:\n  - model: x\n    temperature: 0",
         f"6: models[0].temperature: is unknown; there are model, name, params; {UNDER_PARAMS}"),
        ("scorers: [{type: numeric, tolerence: 1}]",
         "4: scorers[0].tolerence: is unknown; did you mean 'tolerance'?"),
        ("scorers: [{type: json_schema, json_schema: {}, schema: {}}]",
         "4: scorers[0].json_schema: is unknown; did you mean 'schema'?"),
        # wrong types
        ("samples: three", "5: samples: must be a whole number"),
        ("samples: '3'", "5: samples: must be a whole number"),
        ("samples: true", "5: samples: must be a whole number"),
        ("samples: 2.5", "5: samples: must be a whole number"),
        ("samples:", "5: samples: is empty, and must be a whole number"),
        ("budget: much", "5: budget: must be a number"),
        ("name: 2026", "4: name: must be a text: put it in quotes"),
        ("tags: [a, 3]", "5: tags[1]: must be a text: put it in quotes"),
        ("description: [a]", "5: description: must be a text"),
        ("params: 3", "5: params: must be a mapping"),
        ("params:", "5: params: is empty, and must be a mapping"),
        ("dataset: 3", "4: dataset: must be a mapping"),
        ("models: 3", "4: models: must be a list"),
        ("models: [[a]]", "4: models[0]: must be a mapping"),
        ("prompts: 3", "5: prompts: must be a list"),
        ("scorers: [3]", "4: scorers[0]: must be the name of a scorer, or a mapping with its type"),
        ("scorers: [{type: includes, all: yes}]", "4: scorers[0].all: must be true or false"),
        ("prompts: {few_shot: hello}", "5: prompts.few_shot: must be a list"),
        ("prompts: {template: 3}", "5: prompts.template: must be a text: put it in quotes"),
        ("prompts: {template: [a]}", "5: prompts.template: must be a text"),
        ("prompts: {template: {fle: a}}", "5: prompts.template: must be a text, or {file: PATH}"),
        ("dataset: {path: x, metadata: y}", "4: dataset.metadata: must be a list"),
        # unions, with one error each
        ("dataset: {path: x, filter: {a: {b: 1}}}", "4: dataset.filter.a: must be a value, or a list of values"),
        ("dataset: {path: x, filter: {a: [[1], {b: 2}]}}",
         "4: dataset.filter.a: must be a value, or a list of values"),
        ("scorers: {type: json_schema, schema: 3}", "4: scorers.schema: must be a JSON Schema, or the path of one"),
        # ranges
        ("samples: 0", "5: samples: must be at least 1"),
        ("samples: 1001", "5: samples: must be at most 1000"),
        ("budget: 0", "5: budget: must be more than 0"),
        ("max_error_rate: 1.5", "5: max_error_rate: must be at most 1"),
        ("max_concurrency: 0", "5: max_concurrency: must be at least 1"),
        ("dataset: {path: x, limit: 0}", "4: dataset.limit: must be at least 1"),
        ("models: []", "4: models: must have one at least"),
        ("scorers: []", "4: scorers: must have one at least"),
        ("models: ['']", "4: models[0]: must not be empty"),
        (f"models: [{{model: m, name: {'x' * 101}}}]", "4: models[0].name: must have at most 100 characters"),
        ("scorers: [{type: judge, model: j, grades: {C: 2, I: 0}}]",
         "4: scorers[0].grades.C: must be from 0 to 1"),
        ("scorers: [{type: judge, model: j, grades: {}}]", "4: scorers[0].grades: must have one at least"),
        # names
        ("name: my suite", f"4: name: {NAME_RULE}"),
        ("prompts: [{name: a/b}]", f"5: prompts[0].name: {NAME_RULE}"),
        ("models: [m, m]", "4: models[1]: 'm' is the one on line 4 already; give each a name of its own"),
        ("models:\n  - m\n  - model: x\n    name: m",
         "6: models[1]: 'm' is the one on line 5 already; give each a name of its own"),
        ("scorers: [exact, {type: exact}]",
         "4: scorers[1]: 'exact' is the one on line 4 already; give each a name of its own"),
        ("prompts:\n  - a\n  - b",
         "7: prompts[1]: 'default' is the one on line 6 already; give each a name of its own"),
        # scorers
        ("scorers: [exct]",
         f"4: scorers[0]: 'exct' is no scorer (did you mean 'exact'?); the scorers are {SCORER_TYPES}"),
        ("scorers:\n  - name: x\n    type: 3", f"6: scorers[0].type: '3' is no scorer; the scorers are {SCORER_TYPES}"),
        ("scorers: [{pattern: a}]", f"4: scorers[0]: has no type; the scorers are {SCORER_TYPES}"),
        ("scorers: judge", "4: scorers.model: is missing"),
        ("scorers: {type: function}", "4: scorers.function: is missing"),
        ("scorers: {type: function, function: mine}",
         "4: scorers.function: must be of the form module:function"),
        ("scorers: {type: choice, letters: abc}", "4: scorers.letters: must be 2 to 26 capital letters"),
        ("scorers:\n  - type: regex\n    pattern: '(a'",
         "6: scorers[0].pattern: is no regular expression: missing ), unterminated subpattern at position 0"),
        ("scorers: {type: json_schema, schema: {properties: {a: {type: nope}}}}",
         f"4: scorers.schema.properties.a.type: {NO_TYPE}"),
        # parameters that are not for a suite to say
        ("params: {stream: true}", "5: params.stream: is not for a suite to say: answers come as batches"),
        ("models:\n  - model: m\n    params:\n      temperature: 0\n      messages: []",
         "8: models[0].params.messages: is not for a suite to say: prompts has what is asked"),
        ("scorers: {type: judge, model: j, params: {model: x}}",
         "4: scorers.params.model: is not for a suite to say: models has the names of models"),
        ("params: {n: 2}", "5: params.n: must be 1: samples says how often each item is asked"),
        ("params: {n: true}", "5: params.n: must be 1: samples says how often each item is asked"),
        ("params: {n: [1]}", "5: params.n: must be 1: samples says how often each item is asked"),
        # templates
        ("prompts:\n  - template: |\n      one\n      {{ two }\n      three",
         "6: prompts[0].template: line 2 of the template: unexpected '}'"),
        ("prompts: '{{ x | nope }}'", "5: prompts: line 1 of the template: No filter named 'nope'."),
        ("prompts: {system: '{% include \"x\" %}'}",
         "5: prompts.system: line 1 of the template: include isn't possible: there is one template"),
        ("prompts: {few_shot: [{user: '{%', assistant: a}]}",
         "5: prompts.few_shot[0].user: line 1 of the template: tag name expected"),
        ("prompts: {system: ' '}", "5: prompts.system: is blank"),
        ("scorers: {type: judge, model: j, rubric: '{{'}",
         "4: scorers.rubric: line 1 of the template: unexpected 'end of template'"),
        ("scorers: {type: regex, pattern: '{{ x'}",
         "4: scorers.pattern: line 1 of the template: unexpected end of template, expected 'end of print statement'."),
        # YAML's own
        ("samples: 1\nsamples: 2", "6: samples: stands here a second time; the first is on line 5"),
        ("params:\n  seed: 1\n  seed: 1", "7: seed: stands here a second time; the first is on line 6"),
        ("params: {seed: .inf}", "5: .inf is no finite number"),
        ("params: {seed: 1e999}", "5: 1e999 is no finite number"),
        ('description: "\\ud83d"', "5: this text has half of a surrogate pair"),
        ("params: {seed: !!int '1'}", "5: the tag tag:yaml.org,2002:int isn't taken: write the value without it"),
        ("description: !!python/object:os.system x",
         "5: the tag tag:yaml.org,2002:python/object:os.system isn't taken: write the value without it"),
        ("params: {<<: 3}", "5: <<: must be a mapping, or a list of them"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_line_and_field(tmp_path: Path, text: str, problem: str) -> None:
    """``text`` takes the place of the lines of the least suite that say the same, and stands at the end."""
    said = {line.partition(":")[0] for line in text.splitlines()}
    rest = "".join(line for line in LEAST.splitlines(keepends=True) if line.partition(":")[0] not in said)
    assert told(tmp_path, rest + text) == f"suite.yaml:{problem}"


def test_all_that_is_wrong_is_told_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    text = (
        "# A comment counts as a line.\n"
        "name: a b\n"
        "dataset:\n"
        "  pth: x.jsonl\n"
        "prompts: '{{'\n"
        "sampels: 3\n"
        "scorers: [exct]\n"
        "models:\n"
        "  - {model: m, params: {n: 2}}\n"
        "  - {model: m}\n"
        "budget: 0\n"
        "budget: 1\n"
    )
    assert told(tmp_path, text).splitlines() == [
        f"suite.yaml:2: name: {NAME_RULE}",
        "suite.yaml:3: dataset.path: is missing",
        "suite.yaml:4: dataset.pth: is unknown; did you mean 'path'?",
        "suite.yaml:5: prompts: line 1 of the template: unexpected 'end of template'",
        "suite.yaml:6: sampels: is unknown; did you mean 'samples'?",
        "suite.yaml:7: scorers[0]: 'exct' is no scorer (did you mean 'exact'?); the scorers are "
        + SCORER_TYPES,
        "suite.yaml:9: models[0].params.n: must be 1: samples says how often each item is asked",
        "suite.yaml:10: models[1]: 'm' is the one on line 9 already; give each a name of its own",
        "suite.yaml:11: budget: must be more than 0",
        "suite.yaml:12: budget: stands here a second time; the first is on line 11",
    ]


def test_what_is_missing_at_the_top_is_told_at_its_beginning(tmp_path: Path) -> None:
    assert told(tmp_path, "\n# nothing much\ntags: [a]\n").splitlines() == [
        f"suite.yaml:3: {field}: is missing" for field in ("name", "dataset", "models", "scorers")
    ]


def test_a_file_that_the_suite_names_is_told_with_both_lines(tmp_path: Path) -> None:
    write(tmp_path, "fine\n{{ not", "bad.j2")
    write(tmp_path, b"\xff\xfe", "binary.j2")
    write(tmp_path, "{\n  a: [\n}", "bad.json")
    write(tmp_path, '{"type": "nope"}', "schema.json")
    text = (
        "name: s\ndataset: d\nmodels: m\nprompts:\n  template: {file: bad.j2}\n  system: {file: binary.j2}\n"
        "  few_shot: [{user: {file: gone.j2}, assistant: {file: .}}]\n"
        "scorers:\n  - {type: json_schema, schema: bad.json}\n  - {type: json_schema, name: b, schema: schema.json}\n"
    )
    assert told(tmp_path, text).splitlines() == [
        "suite.yaml:5: prompts.template: bad.j2: line 2 of the template: unexpected 'end of template'",
        "suite.yaml:6: prompts.system: the file 'binary.j2' is not UTF-8 text",
        f"suite.yaml:7: prompts.few_shot[0].user: the file 'gone.j2' isn't there (paths are relative to {tmp_path})",
        "suite.yaml:7: prompts.few_shot[0].assistant: the file '.' can't be read: Is a directory",
        f"suite.yaml:9: scorers[0].schema: bad.json:3: is not valid YAML: {NO_NODE}",
        f"suite.yaml:10: scorers[1].schema: schema.json: {NO_TYPE}",
    ]


def bomb(levels: int) -> str:
    rows = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(rows)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "suite.yaml: is empty; a suite has a name, a dataset, models and scorers"),
        ("# nothing\n", "suite.yaml: is empty; a suite has a name, a dataset, models and scorers"),
        ("---\n", "suite.yaml: is empty; a suite has a name, a dataset, models and scorers"),
        ("- name: s\n", "suite.yaml:1: is a list; a suite is a mapping of fields"),
        ("\nhello\n", "suite.yaml:2: is a single value; a suite is a mapping of fields"),
        ("name: s\nparams:\n\tseed: 1\n", "suite.yaml:3: a tab stands where YAML takes spaces alone"),
        (
            "name: s\nparams:\n  seed: 1\n\ttop_k: 1\n",
            "suite.yaml:4: a tab stands where YAML takes spaces alone",
        ),
        (b"\xff\xfe\x00", "suite.yaml is no suite file: it is not UTF-8 text"),
        ("name: s\nx: \x00", "suite.yaml:2: the character U+0000 can't stand in YAML"),
        ("name: s\n---\nname: t\n", "suite.yaml:2: a second document begins here; a suite is one"),
        ("name: s: t\n", "suite.yaml:1: is not valid YAML: mapping values are not allowed here"),
        ("name: *s\n", "suite.yaml:1: *s stands for nothing: no &s ends before it"),
        ("a: &a [*a]\n", "suite.yaml:1: *a stands for nothing: no &a ends before it"),
        ("? [a]\n: b\n", "suite.yaml:1: a key must be a text"),
        ("[" * 200, "suite.yaml:1: lists and mappings stand in each other more than 50 deep"),
        (bomb(9), "suite.yaml:5: there are more than 100,000 values, aliases written out"),
        ("x" * (4 * 1024 * 1024 + 1), "suite.yaml is no suite file: it has more than 4 MiB"),
        (f"name: {'9' * 5000}\n", "suite.yaml:1: this number is too long"),
    ],
)
def test_a_file_that_is_no_suite_says_so(tmp_path: Path, text: str | bytes, problem: str) -> None:
    assert told(tmp_path, text).splitlines()[0] == problem


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(TailraceError, match=r"gone\.yaml: there is no such file$"):
        load(tmp_path / "gone.yaml")
    with pytest.raises(TailraceError, match=r"is a folder; name the suite file in it$"):
        load(tmp_path)


# --------------------------------------------------------------------------------------------- dump and restore

_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:@+-]{0,9}", fullmatch=True)
_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
_columns = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
_wanted = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _columns
)
_params = st.dictionaries(_columns, JSON, max_size=3)
_datasets = st.builds(
    Dataset,
    path=st.sampled_from([Path("d.jsonl"), Path("../d.csv"), Path("/tmp/ä b.parquet")]),
    input=_columns,
    target=st.sampled_from(["target", "answer"]),
    metadata=st.none() | st.lists(_columns, max_size=3).map(tuple),
    category=st.none() | _columns,
    filter=st.dictionaries(_columns, _wanted | st.lists(_wanted, max_size=3).map(tuple), max_size=3),
    shuffle=st.none() | st.integers(),
    limit=st.none() | st.integers(1, 100),
)
_shots = st.lists(st.builds(Shot, user=_texts, assistant=_texts), max_size=2).map(tuple)
_prompts = st.builds(Prompt, name=_names, system=st.none() | _texts, template=_texts, few_shot=_shots)
_models = st.builds(Model, model=_texts, name=st.just("") | _columns, params=_params)
_scorers = st.one_of(
    st.builds(SCORERS["exact"], name=st.none() | _names),
    st.builds(SCORERS["includes"], name=_names, all=st.booleans()),
    st.builds(SCORERS["regex"], name=_names, pattern=_texts),
    st.builds(SCORERS["numeric"], name=_names, tolerance=st.floats(0, 10)),
    st.builds(SCORERS["json_schema"], name=_names, schema=st.booleans() | _params | st.just(Path("s.json"))),
    st.builds(SCORERS["judge"], name=_names, model=_texts, rubric=st.none() | _texts, params=_params,
              grades=st.dictionaries(_columns, st.floats(0, 1), max_size=3)),
    st.builds(SCORERS["function"], name=_names, function=st.just("a.b:c"), timeout=st.floats(0.1, 60)),
)  # fmt: skip
_suites = st.builds(
    Suite,
    name=_names,
    description=_columns,
    dataset=_datasets,
    prompts=st.lists(_prompts, min_size=1, max_size=3, unique_by=lambda prompt: prompt.name).map(tuple),
    models=st.lists(_models, min_size=1, max_size=3, unique_by=lambda model: model.label).map(tuple),
    params=_params,
    samples=st.integers(1, 1000),
    scorers=st.lists(_scorers, min_size=1, max_size=3, unique_by=lambda scorer: scorer.label).map(tuple),
    budget=st.none() | st.floats(0.01, 100),
    tags=st.lists(_names, max_size=3).map(tuple),
)


@settings(max_examples=50)
@given(_suites)
def test_a_suite_survives_a_manifest(suite: Suite) -> None:
    again = restore(json.loads(json.dumps(dump(suite))))
    assert again == suite
    assert json.dumps(dump(again)) == json.dumps(dump(suite))


def test_a_restored_suite_asks_for_no_column_that_the_file_did_not_name(tmp_path: Path) -> None:
    found = suite(tmp_path, LEAST)
    assert restore(dump(found)).dataset.model_fields_set == {"path"}


def test_what_is_no_dump_is_refused() -> None:
    with pytest.raises(TailraceError, match="the manifest's suite can't be read"):
        restore({"name": "s"})
