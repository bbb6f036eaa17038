"""From a batch's input file to its rows, on both databases; or to what is wrong with it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import Engine, func, select, update

from producers import validation
from producers.validation import Validation
from schemas.batches import MAX_ERRORS, BatchStatus
from schemas.fingerprint import fingerprint
from schemas.ids import is_completion_id, new_batch_id, new_file_id
from schemas.providers import Providers, Resolved, load_providers
from schemas.settings import Settings
from schemas.tables import batch_rows, batch_slices, batches
from stores.batches import Batches, BatchRow
from stores.migration import migrate
from stores.sql import make_engine, reading, writing
from stores.storage import Storage, open_storage

PROVIDERS = """
default = "local"
[providers.local]
base_url = "http://127.0.0.1:1/v1"
[providers.other]
base_url = "http://127.0.0.1:1/v1"
[aliases]
best = ["other:big", "local:small"]
"""
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def row(custom_id: str, /, **fields: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": BODY, **fields}


class World:
    """A database, a storage, and batches that are to be validated."""

    def __init__(self, url: str, folder: Path) -> None:
        migrate(url)
        self.engine: Engine = make_engine(url)
        self.settings = Settings(files=str(folder / "files"))
        self.storage: Storage = open_storage(self.settings)
        self.batches = Batches(self.engine)
        self.providers: Providers = load_providers(PROVIDERS, source="providers.toml")
        self.now_ms = 5_000

    def batch(self, data: bytes | list[Any], **fields: Any) -> BatchRow:
        """One whose file has these bytes, or rows."""
        file = new_file_id()
        content = data if isinstance(data, bytes) else b"".join(json.dumps(r).encode() + b"\n" for r in data)
        with self.storage.write(file) as out:
            out.write(content)
        known: dict[str, Any] = {
            "id": new_batch_id(),
            "tenant": "acme",
            "key_id": "key_1",
            "endpoint": "/v1/chat/completions",
            "input_file_id": file,
            "completion_window": "24h",
            "max_concurrency": 10,
            "max_error_rate": 0.5,
            "created_ms": 1000,
            "expires_ms": 90_000,
            "token": "mine",
            "until_ms": 20_000,
        }
        batch = BatchRow(**(known | fields))
        self.batches.add(batch)
        return batch

    def validate(
        self,
        batch: BatchRow,
        token: str = "mine",
        *,
        resolve: Callable[[str], Resolved] | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> str:
        job = Validation(
            self.batches,
            self.storage,
            self.settings,
            resolve=resolve or self.providers.resolve,
            clock=lambda: self.now_ms,
            stopping=stopping,
        )
        return job.run(batch.id, token)

    def found(self, batch: BatchRow) -> BatchRow:
        row = self.batches.get(batch.tenant, batch.id)
        assert row is not None
        return row

    def rows(self, batch: BatchRow) -> list[Any]:
        statement = select(batch_rows).where(batch_rows.c.batch_id == batch.id).order_by(batch_rows.c.n)
        with reading(self.engine) as connection:
            return [*connection.execute(statement).all()]

    def slices(self, batch: BatchRow) -> list[Any]:
        statement = select(batch_slices).where(batch_slices.c.batch_id == batch.id)
        with reading(self.engine) as connection:
            return [*connection.execute(statement.order_by(batch_slices.c.first)).all()]

    def errors(self, data: bytes | list[Any]) -> list[tuple[str, str | None, int | None]]:
        """Those of a file that is refused; nothing else of it is kept."""
        batch = self.batch(data)
        assert self.validate(batch) == "failed"
        found = self.found(batch)
        assert (found.status, found.ended_ms, found.token, found.total) == (
            BatchStatus.FAILED,
            5_000,
            None,
            0,
        )
        assert self.rows(batch) == self.slices(batch) == []
        assert found.errors is not None
        assert all(sorted(error) == ["code", "line", "message", "param"] for error in found.errors)
        return [(error["code"], error["param"], error["line"]) for error in found.errors]


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> Iterator[World]:
    world = World(database_url, tmp_path)
    yield world
    world.engine.dispose()


@pytest.fixture(params=["here", "apart"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are checked here, and by a process of its own."""
    if request.param == "apart":
        monkeypatch.setattr(validation, "APART_BYTES", 0)


@pytest.mark.usefixtures("each_way")
def test_rows_have_all_that_is_needed_to_ask_them(world: World) -> None:
    body = {**BODY, "model": "best", "temperature": 1.0, "max_tokens": 5.0, "top_p": None, "seed": 7}
    headers = {"x-sample": "3", "Cache-Control": "max-age=60", "X-On-Behalf-Of": "bob"}
    batch = world.batch([row("a"), row("é", body=body, headers=headers)], end_user="ann")
    assert world.validate(batch) == "in_progress"
    first, second = world.rows(batch)
    assert (first.n, first.line, first.custom_id, first.end_user) == (0, 1, "a", "ann")
    assert (first.sample, first.cache_control) == (None, None)
    assert json.loads(first.body) == BODY
    assert (second.n, second.line, second.custom_id, second.end_user) == (1, 2, "é", "bob")
    assert (second.sample, second.cache_control) == (3, "max-age=60")
    params = json.loads(second.body)
    assert params == {**BODY, "model": "best", "temperature": 1, "max_tokens": 5, "seed": 7}
    assert second.fingerprint == fingerprint(
        tenant="acme", provider="other", model="big", params=params, sample=3
    )
    assert is_completion_id(first.completion_id)
    assert is_completion_id(second.completion_id)
    assert first.completion_id != second.completion_id


@pytest.mark.usefixtures("each_way")
def test_slices_cover_all_rows_and_name_their_providers(world: World) -> None:
    names = ["local:m"] * 100 + ["other:m", "m"] * 50 + ["other:m"] * 30
    made = [row(f"r{n}", body={**BODY, "model": name}) for n, name in enumerate(names)]
    batch = world.batch(made)
    assert world.validate(batch) == "in_progress"
    found = world.found(batch)
    assert (found.status, found.total, found.in_progress_ms) == (BatchStatus.IN_PROGRESS, 230, 5_000)
    assert (found.model, found.token, found.until_ms, found.errors) == (None, None, None, None)
    slices = [(s.first, s.beyond, s.provider, s.state, s.completed, s.token) for s in world.slices(batch)]
    assert slices == [
        (0, 100, "local", "ready", 0, None),
        (100, 200, "local,other", "ready", 0, None),
        (200, 230, "other", "ready", 0, None),
    ]


def test_a_batch_of_one_model_says_which(world: World) -> None:
    batch = world.batch([row("a"), row("b")])
    world.validate(batch)
    assert world.found(batch).model == "m"


@pytest.mark.usefixtures("each_way")
def test_many_rows_are_written_in_the_order_of_the_file(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "CHUNK_BYTES", 10_000)
    batch = world.batch([row(f"r{n}", body={**BODY, "user": "x" * (n % 300)}) for n in range(2345)])
    assert world.validate(batch) == "in_progress"
    assert [(r.n, r.custom_id, r.line) for r in world.rows(batch)] == [
        (n, f"r{n}", n + 1) for n in range(2345)
    ]
    assert world.found(batch).total == 2345


def test_line_ends_of_windows_and_a_byte_order_mark_are_taken(world: World) -> None:
    data = b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row(f"r{n}")).encode() for n in range(3)) + b"\r\n\r\n"
    batch = world.batch(data)
    assert world.validate(batch) == "in_progress"
    assert [r.custom_id for r in world.rows(batch)] == ["r0", "r1", "r2"]


@pytest.mark.usefixtures("each_way")
def test_every_bad_line_is_told_in_order_and_nothing_stays(world: World) -> None:
    good = json.dumps(row("good")).encode()
    lines = [
        good,
        b"{",
        json.dumps(row("b", method="GET", url="/x")).encode(),
        b"",
        good,
        json.dumps(row("c", body={**BODY, "temperature": 9})).encode(),
        b'{"custom_id": "\xff"}',
        json.dumps(row("d", body={**BODY, "model": "local:"})).encode(),
        json.dumps(row("e\0")).encode(),
        json.dumps(row("f", **{"\0": 1})).encode(),
    ]
    assert world.errors(b"\n".join(lines)) == [
        ("invalid_json_line", None, 2),
        ("invalid_method", "method", 3),
        ("invalid_url", "url", 3),
        ("blank_line", None, 4),
        ("duplicate_custom_id", "custom_id", 5),
        ("invalid_request", "body.temperature", 6),
        ("invalid_encoding", None, 7),
        ("model_not_found", "body.model", 8),
        ("invalid_custom_id", "custom_id", 9),
        ("unknown_parameter", "\ufffd", 10),
    ]


def test_a_bad_line_after_many_good_ones_takes_them_back(world: World) -> None:
    made: list[Any] = [row(f"r{n}") for n in range(1500)]
    assert world.errors([*made, row("r7"), [], row("r9")]) == [
        ("duplicate_custom_id", "custom_id", 1501),
        ("invalid_json_line", None, 1502),
        ("duplicate_custom_id", "custom_id", 1503),
    ]


def test_more_errors_than_are_told_are_counted(world: World) -> None:
    found = world.errors([row("same", method="GET")] * (3 * MAX_ERRORS))
    assert len(found) == MAX_ERRORS + 1
    assert found[:-1] == [("invalid_method", "method", n + 1) for n in range(MAX_ERRORS)]
    assert found[-1] == ("more_errors", None, None)
    batch = world.batch([row("same")] * (MAX_ERRORS + 501))
    world.validate(batch)
    told = world.found(batch).errors
    assert told is not None
    assert told[0]["line"] == 2
    assert told[-1]["message"] == "There are 500 more errors."


@pytest.mark.usefixtures("each_way")
def test_a_file_without_rows_with_too_many_and_one_that_is_gone(world: World) -> None:
    for empty in (b"", b"\n \r\n", b"\xef\xbb\xbf"):
        assert world.errors(empty) == [("empty_file", "input_file_id", None)]
    world.settings.max_batch_rows = 3
    assert world.validate(world.batch([row(f"r{n}") for n in range(3)])) == "in_progress"
    assert world.errors([row(f"r{n}") for n in range(5)]) == [("too_many_rows", None, 4)]
    batch = world.batch([])
    world.storage.delete(batch.input_file_id)
    assert world.validate(batch) == "failed"
    told = world.found(batch).errors
    assert told is not None
    assert [error["code"] for error in told] == ["file_not_found"]


def test_a_line_longer_than_a_request_may_be_is_refused(world: World) -> None:
    world.settings.max_body_bytes = 1000
    long = row("long", body={**BODY, "user": "x" * 1000})
    assert world.errors([row("a"), long, row("b")]) == [("line_too_long", None, 2)]


def test_a_second_validation_takes_the_place_of_one_that_was_lost(world: World) -> None:
    """The first worker's lease ran out while it was at it; what it does then changes nothing."""
    batch = world.batch([row(f"r{n}") for n in range(2000)])
    outcomes: list[str] = []
    dealt = False

    def resolve(model: str) -> Resolved:
        nonlocal dealt
        if not dealt:
            dealt = True
            again = update(batches).where(batches.c.id == batch.id).values(token="other")
            with writing(world.engine) as connection:
                connection.execute(again)
            outcomes.append(world.validate(batch, "other"))
        return world.providers.resolve(model)

    outcomes.append(world.validate(batch, resolve=resolve))
    assert outcomes == ["in_progress", "lost"]
    assert [r.n for r in world.rows(batch)] == [*range(2000)]
    assert world.found(batch).status == BatchStatus.IN_PROGRESS


@pytest.mark.usefixtures("each_way")
def test_a_validation_that_is_cancelled_leaves_no_rows(world: World) -> None:
    batch = world.batch([row(f"r{n}", body={**BODY, "model": f"m{n // 1000}"}) for n in range(3000)])

    def resolve(model: str) -> Resolved:
        if model == "m2":
            assert len(world.rows(batch)) >= 1000
            world.batches.cancel(batch.tenant, batch.id, 4_000)
        return world.providers.resolve(model)

    assert world.validate(batch, resolve=resolve) == "lost"
    assert world.found(batch).status == BatchStatus.CANCELLED
    assert world.rows(batch) == []


@pytest.mark.usefixtures("each_way")
def test_a_worker_that_stops_leaves_the_batch_to_the_next_at_once(world: World) -> None:
    batch = world.batch([row(f"r{n}") for n in range(2000)])
    assert world.validate(batch, stopping=lambda: True) == "stopped"
    found = world.found(batch)
    assert (found.status, found.until_ms) == (BatchStatus.VALIDATING, 5_000)
    assert world.validate(batch) == "in_progress"
    assert len(world.rows(batch)) == 2000


def test_the_lease_is_renewed_while_it_lasts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "RENEW_SECONDS", 0.01)
    batch = world.batch([row("a")])
    renewed = threading.Event()

    def resolve(model: str) -> Resolved:
        world.now_ms = 50_000
        for _ in range(6000):
            if (world.found(batch).until_ms or 0) >= 65_000:
                renewed.set()
                break
            renewed.wait(0.01)
        return world.providers.resolve(model)

    assert world.validate(batch, resolve=resolve) == "in_progress"
    assert renewed.is_set()


def test_a_database_that_refuses_puts_it_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = world.batch([row("a")])

    def broken(_: str) -> Any:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(world.storage, "read", broken)
        assert world.validate(batch) == "put off"
    assert world.found(batch).status == BatchStatus.VALIDATING
    with world.engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(batch_rows)) == 0
    assert world.validate(batch) == "in_progress"


def checkers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "producers.checking" in child.cmdline()]


def test_a_process_that_is_killed_while_it_checks_puts_it_off(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "APART_BYTES", 0)
    batch = world.batch([row(f"r{n}", body={**BODY, "model": f"m{n // 1000}"}) for n in range(5000)])

    def resolve(model: str) -> Resolved:
        if model == "m3":
            (child,) = checkers()
            child.kill()
            child.wait()
        return world.providers.resolve(model)

    assert world.validate(batch, resolve=resolve) == "put off"
    assert world.found(batch).status == BatchStatus.VALIDATING
    assert world.validate(batch) == "in_progress"
    assert [r.n for r in world.rows(batch)] == [*range(5000)]


def test_no_process_is_left_behind(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "APART_BYTES", 0)
    assert world.validate(world.batch([row("a")])) == "in_progress"
    assert world.validate(world.batch([row("a", method="GET")])) == "failed"
    assert world.validate(world.batch([row("a")]), stopping=lambda: True) == "stopped"
    assert checkers() == []
