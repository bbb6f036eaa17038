"""Other scorers for a run that has its answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tailrace.errors import TailraceError
from tailrace.evaluation import loading, suite
from tailrace.evaluation.folder import Folder
from tailrace.evaluation.marked import Node, parse
from tailrace.evaluation.problems import Unreadable
from tailrace.evaluation.shorthand import expanded
from tailrace.evaluation.suitechecks import findings
from tailrace.evaluation.wording import in_words


def rescored(folder: Folder, texts: Sequence[str], *, only: bool) -> dict[str, Any]:
    """The run's suite with the scorers that ``texts`` say: those of the same name are replaced, others come behind, and
    with ``only`` no other stays. Raises TailraceError, also for a judge that was none of the run's."""
    what = loading.restore(folder.manifest.suite)
    there = {spec.label: spec for spec in what.scorers}
    given = {spec.label: spec for spec in (_spec(text, there) for text in texts)}
    for label, spec in given.items():
        if isinstance(spec, suite.Judge) and spec != there.get(label):
            raise TailraceError(
                f"--scorer {label}: a judge asks a model, and rescoring asks none: put it into the suite, and run that"
            )
    scorers = given if only and given else there | given
    return loading.dump(what.model_copy(update={"scorers": tuple(scorers.values())}))


def _spec(text: str, there: dict[str, suite.Scorer]) -> suite.Scorer:
    """A scorer of the run by its name, or whatever a suite file may say of one, as YAML. Raises TailraceError."""
    if text in there:
        return there[text]
    try:
        node, problems = parse(text)
    except Unreadable as error:
        raise TailraceError(f"--scorer {text}: {error.problem.message}") from None
    fields = {
        "name": Node("rescored", 1),
        "dataset": Node("none", 1),
        "models": Node([Node("none", 1)], 1),
        "scorers": Node([node or Node(None, 1)], 1),
    }
    root, unread = expanded(Node(fields, 1), Path())
    problems += [*unread, *findings(root)]
    try:
        what = suite.Suite.model_validate_json(json.dumps(root.plain()), strict=True)
    except ValidationError as error:
        problems += in_words(error, root)
    else:
        if not problems:
            return what.scorers[0]
    told = "; ".join(
        f"{(problem.field or '').removeprefix('scorers[0]').removeprefix('.')} {problem.message}".strip()
        for problem in dict.fromkeys(problems)
    )
    raise TailraceError(f"--scorer {text}: {told}")
