"""A run is a folder: what is in it, and where a run stands.

```
runs/arithmetic-20261128-153012/
  suite.yaml       the suite as it was read        items.jsonl      the items that are asked
  manifest.json    what is run, and how far        answers/*.jsonl  an arm's lines of batches
  judged/*.jsonl   a judge's lines of batches      samples.jsonl, results.parquet, summary.json, report.html
```

The manifest and the lines are all that a run needs to go on; whatever else there is is made of them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from tailrace.atomic import replacing
from tailrace.errors import TailraceError

#: Of the manifest below.
VERSION = 1
MANIFEST, SUITE, ITEMS, LOCK = "manifest.json", "suite.yaml", "items.jsonl", ".lock"
#: Where results are while they are written.
NEW = ".new"
SAMPLES, PARQUET, SUMMARY, REPORT = "samples.jsonl", "results.parquet", "summary.json", "report.html"

Status = Literal["running", "completed", "stopped", "failed"]


class Job(msgspec.Struct):
    """The batch that an arm or a judge has under way, in the order in which it comes to be known: the key that it is
    made with, the file of its rows, its id. ``uploaded``: when its file came, by the server's clock. ``rows``: how many
    it has, ``concurrency``: how many go at once."""

    key: str | None = None
    file: str | None = None
    uploaded: int = 0
    batch: str | None = None
    rows: int = 0
    concurrency: int = 1


class Spent(msgspec.Struct, frozen=True):
    """A batch whose lines are in the folder. ``cost_nano`` None: nobody knows."""

    job: str
    batch: str
    cost_nano: int | None


class Manifest(msgspec.Struct):
    """``suite`` is all of it, overrides applied, and ``source`` the file that it was in. Times are seconds since the
    epoch; ``seconds`` is how long commands have worked on it. ``jobs`` and ``spent`` by the name of an arm's or a
    judge's file."""

    id: str
    suite: dict[str, Any]
    source: str
    server: str
    dataset: str
    fingerprint: str
    items: int
    created: float
    tailrace: str
    tags: list[str] = []
    fresh: bool = False
    version: int = VERSION
    status: Status = "running"
    reason: str | None = None
    ended: float | None = None
    seconds: float = 0.0
    jobs: dict[str, Job] = {}
    spent: list[Spent] = []

    @property
    def name(self) -> str:
        return self.suite["name"]

    @property
    def has_sent(self) -> bool:
        """Whether a command has begun to ask: until then answers of earlier runs are looked for."""
        return bool(self.spent) or any(job.key is not None for job in self.jobs.values())

    @property
    def spent_nano(self) -> int:
        """What is known of it."""
        return sum(batch.cost_nano or 0 for batch in self.spent)


class Folder:
    """A run's folder; ``manifest`` is what it says now."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def create(cls, runs: Path, manifest: Manifest, suite: str) -> Folder:
        """A folder that is no run yet, until ``save``; the manifest gets its id. Raises TailraceError where it can't be
        made."""
        path = runs / manifest.id
        try:
            runs.mkdir(parents=True, exist_ok=True)
            while True:
                try:
                    path.mkdir()
                    break
                except FileExistsError:  # another command's
                    manifest.id = new_id(manifest.name, runs)
                    path = runs / manifest.id
            for part in ("answers", "judged"):
                (path / part).mkdir()
            (path / SUITE).write_text(suite, "utf-8")
        except OSError as error:
            raise TailraceError(
                f"the run's folder {path} can't be made: {error.strerror}; choose another with --runs"
            ) from None
        return cls(path, manifest)

    @classmethod
    def open(cls, path: Path) -> Folder:
        """Raises TailraceError where it is none."""
        try:
            manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
        except FileNotFoundError:
            raise TailraceError(f"{path} is not a run: it has no {MANIFEST}") from None
        except OSError as error:
            raise TailraceError(f"{path / MANIFEST} can't be read: {error.strerror}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise TailraceError(f"{path / MANIFEST} is not the manifest of a run: {error}") from None
        if manifest.version != VERSION:
            raise TailraceError(
                f"{path} is of another version of tailrace ({manifest.tailrace}): use that one, or run it again"
            )
        return cls(path, manifest)

    def save(self) -> None:
        self._write(self.path)

    def _write(self, path: Path) -> None:
        with replacing(path / MANIFEST) as file:
            file.write(msgspec.json.format(msgspec.json.encode(self.manifest), indent=2) + b"\n")

    @contextmanager
    def replacing(self) -> Generator[Path]:
        """A folder for files that take their places when the block ends well, and behind them the manifest: if one of
        them can't be written, all stay as they are. Raises TailraceError."""
        made = self.path / NEW
        try:
            shutil.rmtree(made, ignore_errors=True)  # of a command that was killed
            made.mkdir()
            yield made
            self._write(made)
            files = sorted(made.iterdir(), key=lambda path: path.name == MANIFEST)
            for file in files:
                file.replace(self.path / file.name)
        except OSError as error:
            raise TailraceError(f"can't write into {self.path}: {error.strerror or error}") from None
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def answers(self, name: str) -> Path:
        return self.path / "answers" / f"{name}.jsonl"

    def judged(self, name: str) -> Path:
        return self.path / "judged" / f"{name}.jsonl"

    @contextmanager
    def locked(self) -> Generator[None]:
        """One command at a time works on a run. Raises TailraceError. What the manifest says is read anew."""
        try:
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise TailraceError(f"can't write into {self.path}: {error.strerror}") from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TailraceError(f"another command works on {self.path}: wait for it") from None
            self.manifest = Folder.open(self.path).manifest
            yield
        finally:
            os.close(descriptor)


def new_id(name: str, runs: Path) -> str:
    """A name that says when, and is not there yet."""
    base = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    found, n = base, 1
    while (runs / found).exists():
        n += 1
        found = f"{base}-{n}"
    return found


def find(runs: Path, name: str) -> Folder:
    """A run by its folder, its id, the beginning of one, or ``latest``. Raises TailraceError."""
    if (Path(name) / MANIFEST).exists():
        return Folder.open(Path(name))
    if (runs / name / MANIFEST).exists():
        return Folder.open(runs / name)
    there = list(every(runs))
    if name == "latest" and there:
        return there[0]
    like = [folder for folder in there if folder.manifest.id.startswith(name)]
    if len(like) == 1:
        return like[0]
    if like:
        names = ", ".join(folder.manifest.id for folder in like[:5])
        raise TailraceError(f"several runs begin with {name!r}: {names}{', …' if len(like) > 5 else ''}")
    raise TailraceError(f"there is no run {name!r} in {runs}: see `tailrace eval list`")


def every(runs: Path) -> Iterator[Folder]:
    """The runs in a folder, the newest first. What is no run is passed over."""
    found: list[Folder] = []
    if runs.is_dir():
        for path in runs.iterdir():
            if (path / MANIFEST).exists():
                try:
                    found.append(Folder.open(path))
                except TailraceError:
                    continue
    yield from sorted(
        found, key=lambda run: (run.manifest.created, run.manifest.id, run.path.name), reverse=True
    )
