"""What a run leaves for people and programs: every sample, the figures, and the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from tailrace.atomic import replacing
from tailrace.errors import TailraceError
from tailrace.evaluation import report
from tailrace.evaluation.figures import Figures, RunInfo
from tailrace.evaluation.folder import PARQUET, REPORT, SAMPLES, SUMMARY, Folder
from tailrace.evaluation.grading import Asking, Cell
from tailrace.evaluation.results import Header, Row, read_samples, write_parquet, write_samples
from tailrace.evaluation.shapes import Sample
from tailrace.evaluation.suite import Suite
from tailrace.evaluation.summarise import JudgeWork, summarise


class Summary(msgspec.Struct, frozen=True):
    """``summary.json``."""

    run: RunInfo
    figures: Figures


def write(
    folder: Folder,
    suite: Suite,
    asking: Asking,
    samples: Sequence[tuple[Cell, Sample]],
    scorers: Sequence[str],
    judges: Mapping[str, JudgeWork],
) -> Figures:
    """All of it, and the manifest: first each file beside its place, then all into their places, the manifest last.
    Raises TailraceError where one can't be written, and then all are as they were."""
    manifest = folder.manifest
    info = RunInfo(
        id=manifest.id,
        suite=suite.name,
        description=suite.description,
        tags=[*manifest.tags],
        created=manifest.created,
        status=manifest.status,
        reason=manifest.reason,
        scorers=[*scorers],
        models={arm.key: arm.model.model for arm in asking.arms},
        dataset=manifest.dataset,
        items=len(asking.items),
        samples=asking.samples,
        version=manifest.tailrace,
        server=manifest.server,
    )
    figures = summarise(
        (sample for _, sample in samples),
        scorers,
        arms=[arm.key for arm in asking.arms],
        judges=judges,
        seconds=manifest.seconds,
        spent_nano=manifest.spent_nano,
    )

    def rows() -> Iterator[Row]:
        for cell, sample in samples:
            yield Row(sample, cell.item, asking.messages(cell))

    header = Header(manifest.id, suite.name, tuple(scorers))
    with folder.replacing() as made:
        write_samples(made / SAMPLES, rows(), header)
        write_parquet(made / PARQUET, rows(), header)
        with replacing(made / SUMMARY) as file:
            file.write(msgspec.json.format(msgspec.json.encode(Summary(info, figures)), indent=1) + b"\n")
        with replacing(made / REPORT) as file:
            for piece in report.render(info, figures, rows()):
                file.write(piece)
    return figures


def read_summary(path: Path) -> Summary | None:
    """None where the run has none yet. Raises TailraceError where it is none."""
    try:
        return msgspec.json.decode((path / SUMMARY).read_bytes(), type=Summary)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TailraceError(f"{path / SUMMARY} can't be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TailraceError(f"{path / SUMMARY} is not a run's summary: {error}") from None


def samples_of(folder: Folder) -> list[Sample]:
    """Raises TailraceError where the run has none yet."""
    path = folder.path / SAMPLES
    if not path.exists():
        raise TailraceError(
            f"{folder.manifest.id} has no results yet: tailrace eval resume {folder.manifest.id}"
        )
    return [row.sample for row in read_samples(path)]
