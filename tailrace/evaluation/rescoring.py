"""Other scorers for a run that has its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tailrace.errors import TailraceError
from tailrace.evaluation import loading, suite
from tailrace.evaluation.folder import Folder


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
    return there[text] if text in there else loading.scorer(text, "--scorer")
