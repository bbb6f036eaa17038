"""What a suite file may say. ``loading`` makes one of YAML; here are its shapes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

#: Names of prompts, models, scorers and runs: they are columns, file names and labels.
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.:@+-]{0,99}$"

Name = Annotated[str, Field(pattern=NAME)]
#: A column's value that a row is taken for; a list takes any of them.
Wanted = str | int | float | bool | None


class _Part(BaseModel):
    """Unknown fields are errors: a misspelt ``sampels`` must not be passed over."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Dataset(_Part):
    """Rows of a JSONL, CSV (``.csv``, ``.tsv``) or Parquet file, and which of their columns mean what.

    ``filter``: only rows whose columns have that value, or one of those. ``shuffle`` (a seed) comes after it,
    ``limit`` last.
    """

    path: Path
    input: str = "input"
    target: str = "target"
    id: str = "id"
    metadata: tuple[str, ...] | None = None
    category: str | None = None
    filter: dict[str, Wanted | tuple[Wanted, ...]] = Field(default_factory=dict)
    shuffle: int | None = None
    limit: int | None = Field(default=None, ge=1)


class Shot(_Part):
    """An example conversation before the question: what a user says, and what the model should answer. Both are
    templates over the item's columns, like the prompt itself."""

    user: str
    assistant: str


class Prompt(_Part):
    """``template``, ``system`` and the shots are Jinja2 over an item: all columns of its row, and ``input``,
    ``target``, ``id``. In a file, ``{file: PATH}`` in place of a text reads it from a file beside the suite."""

    name: Name = "default"
    system: str | None = None
    template: str = "{{ input }}"
    few_shot: tuple[Shot, ...] = ()


class Model(_Part):
    """``model`` is a name that the server knows (``provider:model`` or an alias), ``params`` what its requests say
    beside messages. ``name`` tells two entries of one model apart."""

    model: str = Field(min_length=1)
    name: str = Field(default="", max_length=100)
    params: dict[str, Any] = Field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.name or self.model


class _Scorer(_Part):
    name: Name | None = None

    @property
    def label(self) -> str:
        return self.name or str(getattr(self, "type"))  # noqa: B009 - each child has its own literal


class Exact(_Scorer):
    """The normalised answer is one of the targets."""

    type: Literal["exact"] = "exact"


class Includes(_Scorer):
    """One of the targets stands in the answer as whole words; with ``all`` each of them."""

    type: Literal["includes"] = "includes"
    all: bool = False


class Regex(_Scorer):
    """With a group, what it matched last is compared with the targets; without one, a match is enough. ``pattern`` is a
    template over the item."""

    type: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1)
    ignore_case: bool = True


class Choice(_Scorer):
    """The letter of a multiple-choice answer, however it is phrased. ``choices`` names the item's column with the texts
    of the options, so that an answer that says the text counts too."""

    type: Literal["choice"] = "choice"
    letters: str = Field(default="ABCDEFGHIJ", pattern=r"^[A-Z]{2,26}$")
    choices: str | None = None


class Numeric(_Scorer):
    """The last number of the answer, or the one that it marks as final, is the target within a tolerance."""

    type: Literal["numeric"] = "numeric"
    tolerance: float = Field(default=0.0, ge=0)
    relative: float = Field(default=1e-9, ge=0)


class JsonSchema(_Scorer):
    """The answer is JSON (a fence around it is passed over) and valid under ``schema``: an object, or a path beside the
    suite."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    type: Literal["json_schema"] = "json_schema"
    json_schema: dict[str, Any] | bool | Path = Field(alias="schema")


class F1(_Scorer):
    """F1 over normalised tokens, the best over the targets; as SQuAD has it."""

    type: Literal["f1"] = "f1"


class Judge(_Scorer):
    """A model grades the answer by a rubric: a template over the item with ``answer``. Its verdict is the last line of
    the form ``GRADE: x``; ``grades`` says what each x is worth, from 0 to 1."""

    type: Literal["judge"] = "judge"
    model: str = Field(min_length=1)
    rubric: str | None = None
    grades: dict[str, float] = Field(default_factory=lambda: {"C": 1.0, "P": 0.5, "I": 0.0})
    params: dict[str, Any] = Field(default_factory=lambda: {"temperature": 0})


class Function(_Scorer):
    """``module:function`` of the user's own, called in a child process as ``function(answer, target, item)`` with a
    text, the target (a list where there are several, None where there is none) and the item's columns; it returns a
    bool, a number from 0 to 1, or ``{"value": …, "answer": …, "explanation": …}``. Modules beside the suite are found.
    ``timeout`` is in seconds, for one call."""

    type: Literal["function"] = "function"
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    timeout: float = Field(default=30.0, gt=0)


Scorer = Annotated[
    Exact | Includes | Regex | Choice | Numeric | JsonSchema | F1 | Judge | Function,
    Field(discriminator="type"),
]


class Suite(_Part):
    """A whole suite file. ``budget`` is in dollars. ``max_concurrency``: requests under way at once, over all models.
    ``max_error_rate``: the share of rows without an answer at which a run counts as failed."""

    name: Name
    description: str = ""
    dataset: Dataset
    prompts: tuple[Prompt, ...] = (Prompt(),)
    models: tuple[Model, ...] = Field(min_length=1)
    params: dict[str, Any] = Field(default_factory=dict)
    samples: int = Field(default=1, ge=1, le=1000)
    scorers: tuple[Scorer, ...] = Field(min_length=1)
    max_concurrency: int = Field(default=64, ge=1, le=10_000)
    budget: float | None = Field(default=None, gt=0)
    max_error_rate: float = Field(default=0.5, ge=0, le=1)
    tags: tuple[Annotated[str, AfterValidator(str.strip)], ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Suite:
        for what, names in (
            ("prompts", [prompt.name for prompt in self.prompts]),
            ("models", [model.label for model in self.models]),
            ("scorers", [scorer.label for scorer in self.scorers]),
        ):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{what}: two are called {twice!r}; give each a name of its own")
        return self
