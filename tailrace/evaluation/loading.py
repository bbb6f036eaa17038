"""A suite out of its file: read, short forms written out, checked, everything that is wrong told at once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from tailrace.errors import TailraceError
from tailrace.evaluation import shorthand
from tailrace.evaluation.marked import Node, parse
from tailrace.evaluation.problems import Problem, Unreadable, told
from tailrace.evaluation.suite import Dataset, Suite
from tailrace.evaluation.suitechecks import findings
from tailrace.evaluation.wording import in_words

#: The largest suite file, and the largest file that one names, in bytes.
LARGEST = 4 * 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What the command line says in place of the file. ``models`` replaces the file's list: one that stands there, by
    its label or its model, keeps its parameters. ``tags`` come in addition. ``budget`` is in dollars."""

    models: Sequence[str] = ()
    samples: int | None = None
    limit: int | None = None
    budget: float | None = None
    max_concurrency: int | None = None
    tags: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """``suite`` has the overrides and the texts of the files that it names; ``text`` is the file as it is."""

    suite: Suite
    path: Path
    text: str


def load(path: Path, overrides: Overrides | None = None) -> Loaded:
    """Raises TailraceError with a line ``suite.yaml:12: models[1].params: …`` for everything that is wrong."""
    text = _read(path)
    try:
        # JSON may be indented with tabs, and has none in its strings.
        root, problems = parse(text.replace("\t", " ") if path.suffix.lower() == ".json" else text)
    except Unreadable as error:
        raise told(path, [error.problem]) from None
    if root is None or root.value is None:
        raise told(path, [Problem(None, None, "is empty; a suite has a name, a dataset, models and scorers")])
    if not isinstance(root.value, dict):
        what = "a list" if isinstance(root.value, list) else "a single value"
        raise told(path, [*problems, Problem(root.line, None, f"is {what}; a suite is a mapping of fields")])
    root, unread = shorthand.expanded(root, path.parent)
    problems += unread
    if overrides is not None:
        root = _overridden(root, overrides)
    problems += findings(root)
    try:
        suite = Suite.model_validate_json(json.dumps(root.plain()), strict=True)
    except ValidationError as error:
        problems += in_words(error, root)
        if not problems:
            raise TailraceError(f"{path}: {error}") from None
    else:
        if not problems:
            return Loaded(suite, path, text)
    raise told(path, problems)


def dump(suite: Suite) -> dict[str, Any]:
    """``suite`` as JSON values, for ``restore``."""
    return suite.model_dump(mode="json", by_alias=True)


def restore(dumped: dict[str, Any]) -> Suite:
    """The suite of a ``dump``. Raises TailraceError where it is none."""
    dataset = dumped.get("dataset")
    if isinstance(dataset, dict):
        # A column that has its usual name need not be there, unless somebody named it.
        usual = Dataset(path=Path()).model_dump(mode="json", exclude={"path"})
        fields = cast("dict[str, Any]", dataset).items()
        named = {name: value for name, value in fields if name not in usual or value != usual[name]}
        dumped = {**dumped, "dataset": named}
    try:
        return Suite.model_validate_json(json.dumps(dumped), strict=True)
    except (ValidationError, TypeError, ValueError) as error:
        raise TailraceError(f"the manifest's suite can't be read: {' '.join(str(error).split())}") from None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise TailraceError(f"{path} is no suite file: it has more than {LARGEST // 1024**2} MiB")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TailraceError(f"{path} is no suite file: it is not UTF-8 text") from None
    except FileNotFoundError:
        raise TailraceError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise TailraceError(f"{path} is a folder; name the suite file in it") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise TailraceError(f"{path} can't be read: {reason or error}") from None


def _overridden(root: Node, how: Overrides) -> Node:
    fields = dict(root.items())

    def option(name: str, value: Any) -> Node:
        return Node(value, 0, label=name)

    if how.models:
        fields["models"] = option("--model", _chosen(root.get("models"), how.models))
    dataset = fields.get("dataset")
    if how.limit is not None and dataset is not None and isinstance(dataset.value, dict):
        limited = {**dict(dataset.items()), "limit": option("--limit", how.limit)}
        fields["dataset"] = dataclasses.replace(dataset, value=limited)
    for name, said in (
        ("samples", how.samples),
        ("budget", how.budget),
        ("max_concurrency", how.max_concurrency),
    ):
        if said is not None:
            fields[name] = option(f"--{name.replace('_', '-')}", said)
    if how.tags:
        tags = fields.get("tags")
        there = [] if tags is None else tags.elements()
        known = {node.value for node in there if isinstance(node.value, str)}
        more = [option("--tag", tag) for tag in dict.fromkeys(how.tags) if tag not in known]
        fields["tags"] = dataclasses.replace(tags or option("--tag", []), value=[*there, *more])
    return dataclasses.replace(root, value=fields)


def _chosen(models: Node | None, names: Sequence[str]) -> list[Node]:
    """The file's entries of these names, or new ones. A label goes before a model, which several entries may have."""
    entries = [] if models is None else models.elements()
    chosen: list[Node] = []
    for name in dict.fromkeys(names):
        found = [entry for entry in entries if shorthand.label(entry, "name", "model") == name]
        found = found or [entry for entry in entries if shorthand.label(entry, "model") == name]
        new = Node({"model": Node(name, 0, label=f"--model {name}")}, 0, label=f"--model {name}")
        chosen += [entry for entry in found or [new] if entry not in chosen]
    return chosen
