"""``/v1/files``: OpenAI's shapes, what is refused and how, and whose a file is."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from sqlalchemy import insert, update

from schemas.ids import new_batch_id
from schemas.tables import batches, files
from stores.sql import writing
from tests.support.api import Api, encoded, error_of, named
from tests.support.ports import free_port
from tests.support.stack import Stack
from tests.support.valkey import wait_until

FILES = "/v1/files"
LINE = b'{"custom_id": "1"}\n'
BOUNDARY = "xyz"


def upload(
    api: httpx.Client,
    data: bytes = LINE,
    /,
    *,
    filename: str = "input.jsonl",
    url: str = FILES,
    headers: list[tuple[bytes, bytes]] | None = None,
    **fields: str,
) -> httpx.Response:
    form = {"purpose": "batch", **fields}
    return api.post(url, data=form, files={"file": (filename, data)}, headers=headers)


def stored(api: httpx.Client, data: bytes = LINE, /, **more: Any) -> dict[str, Any]:
    answer = upload(api, data, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def listed(api: httpx.Client, query: str = "", **more: Any) -> list[str]:
    answer = api.get(f"{FILES}{query}", **more)
    assert answer.status_code == 200, answer.text
    return [file["id"] for file in answer.json()["data"]]


def folder_of(stack: Stack) -> Path:
    return stack.folder / "home" / "files"


def names(stack: Stack) -> set[str]:
    return {path.name for path in folder_of(stack).iterdir()}


def part(name: str, value: bytes = b"", more: str = "", headers: str = "") -> bytes:
    """A part of a multipart body."""
    disposition = f'Content-Disposition: form-data; name="{name}"{more}\r\n{headers}\r\n'
    return f"--{BOUNDARY}\r\n{disposition}".encode() + value + b"\r\n"


def send(api: httpx.Client, *parts: bytes, end: bytes = f"--{BOUNDARY}--\r\n".encode()) -> httpx.Response:
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return api.post(FILES, content=b"".join(parts) + end, headers=kind)


PURPOSE = part("purpose", b"batch")
FILE = part("file", LINE, '; filename="input.jsonl"')


class TestUpload:
    def test_a_file_in_openais_shape(self, each_api: Api) -> None:
        before = int(time.time())
        file = stored(each_api, b"\x00\xff\r\n--xyz\r\n" * 1000, filename="räksmörgås 1.jsonl")
        assert re.fullmatch(r"file-[0-9a-f]{32}", file["id"])
        assert before <= file.pop("created_at") <= time.time()
        assert file == {
            "id": file["id"],
            "object": "file",
            "bytes": 11_000,
            "expires_at": None,
            "filename": "räksmörgås 1.jsonl",
            "purpose": "batch",
            "status": "processed",
        }

    @pytest.mark.parametrize("purpose", ["batch", "evals", "user_data"])
    @pytest.mark.parametrize("prefix", ["/v1", "/api/v1/llm"])
    def test_each_purpose_under_both_prefixes(self, api: Api, purpose: str, prefix: str) -> None:
        file = stored(api, url=f"{prefix}/files", purpose=purpose)
        assert file["purpose"] == purpose
        for other in ("/v1", "/api/v1/llm"):
            assert api.get(f"{other}/files/{file['id']}").json() == file

    def test_its_size_is_not_that_of_other_bodies(self, stack: Stack, api: Api) -> None:
        """TAILRACE_MAX_BODY_BYTES is less."""
        data = bytes(range(256)) * 4 * 1024 * 6  # 6 MiB
        file = stored(api, data)
        assert file["bytes"] == len(data)
        assert api.get(f"{FILES}/{file['id']}/content").content == data

    @pytest.mark.parametrize("order", ["purpose first", "file first"])
    def test_the_parts_come_in_any_order(self, api: Api, order: str) -> None:
        parts = [PURPOSE, FILE] if order == "purpose first" else [FILE, PURPOSE]
        assert send(api, *parts).json()["bytes"] == len(LINE)

    def test_it_comes_in_pieces_of_any_size(self, api: Api) -> None:
        """A boundary that is cut in two is one all the same."""
        body = PURPOSE + part("file", b"\r\n--xy" * 30, '; filename="x"') + b"--xyz--\r\n"

        def bytewise() -> Iterator[bytes]:
            for at in range(len(body)):
                yield body[at : at + 1]

        kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        file = api.post(FILES, content=bytewise(), headers=kind).json()
        assert api.get(f"{FILES}/{file['id']}/content").content == b"\r\n--xy" * 30

    def test_when_it_expires(self, each_stack: Stack, each_api: Api) -> None:
        """From then on it is not there for anybody."""
        api = each_api
        expires = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        file = stored(api, **expires)
        assert file["expires_at"] == file["created_at"] + 3600
        assert listed(api) == [file["id"]]
        with writing(each_stack.engine) as connection:
            past = int(time.time() * 1000) - 1
            connection.execute(update(files).where(files.c.id == file["id"]).values(expires_ms=past))
        assert listed(api) == []
        for url in (f"{FILES}/{file['id']}", f"{FILES}/{file['id']}/content"):
            assert api.get(url).status_code == 404
        assert api.delete(f"{FILES}/{file['id']}").status_code == 404


def expiring(anchor: bytes, seconds: bytes) -> tuple[bytes, ...]:
    return (PURPOSE, part("expires_after[anchor]", anchor), part("expires_after[seconds]", seconds), FILE)


#: Parts → the field that is named, and what is said of it.
WRONG: dict[str, tuple[tuple[bytes, ...], str | None, str]] = {
    "no parts": ((), "file", "'file' is missing"),
    "no file": ((PURPOSE,), "file", "'file' is missing"),
    "no purpose": ((FILE,), "purpose", "'purpose' is missing"),
    "two purposes": ((PURPOSE, PURPOSE, FILE), "purpose", "sent once"),
    "two files": ((PURPOSE, FILE, FILE), "file", "sent once"),
    "unknown": ((PURPOSE, part("colour", b"red"), FILE), "colour", "no field 'colour'"),
    "unknown file": ((PURPOSE, part("files", b"x", '; filename="x"')), "files", "no field 'files'"),
    "bad purpose": ((part("purpose", b"fine-tune"), FILE), "purpose", "one of batch, evals, user_data"),
    "the server's purpose": ((part("purpose", b"batch_output"), FILE), "purpose", "one of batch"),
    "purpose no UTF-8": ((part("purpose", b"\xff"), FILE), "purpose", "not UTF-8"),
    "long purpose": ((part("purpose", b"x" * 5000), FILE), "purpose", "longer than"),
    "no filename": ((PURPOSE, part("file", LINE)), "file", "no filename"),
    "empty filename": ((PURPOSE, part("file", LINE, '; filename=""')), "file", "no filename"),
    "control character": ((PURPOSE, part("file", LINE, '; filename="a\x07b"')), "file", "printable"),
    "long filename": ((PURPOSE, part("file", LINE, f'; filename="{"x" * 600}"')), "file", "at most 512"),
    "filename no UTF-8": (
        (PURPOSE, part("file", LINE, '; filename="@"').replace(b"@", b"\xff")),
        "file",
        "not UTF-8",
    ),
    "empty file": ((PURPOSE, part("file", b"", '; filename="x"')), "file", "is empty"),
    "encoded": (
        (PURPOSE, part("file", b"eA==", '; filename="x"', "Content-Transfer-Encoding: base64\r\n")),
        "file",
        "Content-Transfer-Encoding",
    ),
    "part without a name": (
        (b"--xyz\r\nContent-Disposition: form-data\r\n\r\nx\r\n",),
        None,
        "no 'Content-Disp",
    ),
    "part without a header": ((b"--xyz\r\n\r\nx\r\n",), None, "no 'Content-Disp"),
    "header without an end": ((b"--xyz\r\nContent-Disposition: " + b"x" * 9000,), None, "can't be read"),
    "no multipart": ((b"hello",), None, "can't be read"),
    "half an expiry": (
        (PURPOSE, part("expires_after[anchor]", b"created_at"), FILE),
        "expires_after[seconds]",
        "missing",
    ),
    "another half": (
        (PURPOSE, part("expires_after[seconds]", b"3600"), FILE),
        "expires_after[anchor]",
        "missing",
    ),
    "anchor": (expiring(b"last_active_at", b"3600"), "expires_after[anchor]", "must be 'created_at'"),
    "too soon": (expiring(b"created_at", b"3599"), "expires_after[seconds]", "at least 3600"),
    "too late": (expiring(b"created_at", b"2592001"), "expires_after[seconds]", "at most 2592000"),
    "no number": (expiring(b"created_at", b"1h"), "expires_after[seconds]", "an integer"),
}


class TestRefused:
    @pytest.fixture(autouse=True)
    def nothing_stays(self, stack: Stack, api: Api) -> Iterator[None]:
        before = names(stack)
        yield
        assert listed(api) == []
        assert names(stack) == before

    @pytest.mark.parametrize("what", WRONG)
    def test_a_form_that_is_wrong(self, api: Api, what: str) -> None:
        """400 that names the field."""
        parts, param, message = WRONG[what]
        answer = send(api, *parts)
        assert answer.status_code == 400
        error = error_of(answer)
        assert error["param"] == param
        assert message in error["message"]

    @pytest.mark.parametrize("end", [b"", b"--xyz", b"--xy"])
    def test_a_body_that_is_cut_off(self, api: Api, end: bytes) -> None:
        """Whole as HTTP, and not as multipart."""
        error = error_of(send(api, PURPOSE, FILE, end=end))
        assert error["code"] == "invalid_multipart"
        assert "cut off" in error["message"]

    @pytest.mark.parametrize(
        "kind", ["application/json", "application/x-www-form-urlencoded", "multipart/mixed; boundary=x", ""]
    )
    def test_another_content_type(self, api: Api, kind: str) -> None:
        answer = api.post(FILES, content=b'{"file": "x"}', headers={"Content-Type": kind})
        assert answer.status_code == 400
        assert error_of(answer)["code"] == "invalid_content_type"

    @pytest.mark.parametrize("boundary", ["", "; boundary=", f"; boundary={'x' * 300}"])
    def test_no_boundary(self, api: Api, boundary: str) -> None:
        answer = api.post(
            FILES, content=b"--x--\r\n", headers={"Content-Type": f"multipart/form-data{boundary}"}
        )
        assert answer.status_code == 400
        assert error_of(answer)["code"] == "invalid_multipart"

    def test_without_a_key(self, stack: Stack, api: Api) -> None:
        with httpx.Client(base_url=stack.url, trust_env=False, verify=False) as nobody:
            assert upload(nobody).status_code == 401

    def test_a_client_that_leaves_half_way(self, stack: Stack, api: Api) -> None:
        before = names(stack)
        head = (
            f"POST {FILES} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.api_key}\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: 9000000\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", stack.port), timeout=30) as client:
            client.sendall(head.encode() + PURPOSE + FILE.removesuffix(b"\r\n") + b"x" * 3_000_000)
            wait_until(lambda: len(names(stack) - before) == 1, 60, "a temporary")
        wait_until(lambda: names(stack) == before, 60, "nothing")


@pytest.fixture(scope="module")
def narrow(stack: Stack) -> Iterator[str]:
    """A gateway that takes files of 100,000 bytes."""
    port = free_port()
    stack.add_gateway("narrow", port, TAILRACE_MAX_FILE_BYTES="100000")
    yield f"http://127.0.0.1:{port}"
    stack.remove("narrow")


class TestTooLarge:
    @pytest.mark.parametrize("size", [100_001, 150_000, 10_000_000])
    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_file_beyond_the_limit(
        self, stack: Stack, api: Api, narrow: str, size: int, chunked: bool
    ) -> None:
        """413 that says so, whether its length is known before or not; nothing stays."""
        before = names(stack)
        body = PURPOSE + part("file", b"x" * size, '; filename="x"') + b"--xyz--\r\n"
        kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        content = (body[at : at + 65536] for at in range(0, len(body), 65536)) if chunked else body
        answer = api.post(f"{narrow}{FILES}", content=content, headers=kind)
        assert answer.status_code == 413
        assert error_of(answer)["code"] == "file_too_large"
        assert "100,000 bytes" in error_of(answer)["message"]
        assert names(stack) == before

    def test_one_of_just_the_limit(self, api: Api, narrow: str) -> None:
        assert stored(api, b"x" * 100_000, url=f"{narrow}{FILES}")["bytes"] == 100_000

    def test_an_endless_rest_behind_the_last_part(self, stack: Stack, api: Api, narrow: str) -> None:
        before = names(stack)

        def endless() -> Iterator[bytes]:
            yield PURPOSE + FILE + b"--xyz--\r\n"
            while True:
                yield b"\0" * 65536

        answer = api.post(
            f"{narrow}{FILES}",
            content=endless(),
            headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
        )
        assert answer.status_code == 413
        assert names(stack) == before


class TestReading:
    def test_the_content_as_it_came(self, each_api: Api) -> None:
        data = bytes(range(256)) * 20_000
        file = stored(each_api, data, filename='a "b"; ä.jsonl')
        answer = each_api.get(f"{FILES}/{file['id']}/content")
        assert answer.status_code == 200
        assert answer.content == data
        assert answer.headers["content-length"] == str(len(data))
        assert answer.headers["content-type"] == "application/octet-stream"
        assert (
            answer.headers["content-disposition"] == f"attachment; filename*=UTF-8''{quote(file['filename'])}"
        )
        head = each_api.head(f"{FILES}/{file['id']}/content")
        assert (head.status_code, head.content) == (200, b"")

    def test_content_that_is_gone(self, stack: Stack, api: Api) -> None:
        file = stored(api)
        (folder_of(stack) / file["id"]).unlink()
        answer = api.get(f"{FILES}/{file['id']}/content")
        assert answer.status_code == 404
        assert error_of(answer)["code"] == "file_not_found"

    def test_content_that_is_shorter_than_it_was(self, stack: Stack, api: Api) -> None:
        """The connection ends before the length that was promised."""
        file = stored(api, LINE * 100)
        (folder_of(stack) / file["id"]).write_bytes(LINE)
        with pytest.raises(httpx.RemoteProtocolError):
            api.get(f"{FILES}/{file['id']}/content")

    def test_a_reader_that_leaves(self, stack: Stack, api: Api) -> None:
        """And whoever comes after is served."""
        file = stored(api, b"x" * 30_000_000)
        for _ in range(20):
            with api.stream("GET", f"{FILES}/{file['id']}/content") as answer:
                next(answer.iter_raw())
        assert len(api.get(f"{FILES}/{file['id']}/content").content) == 30_000_000

    @pytest.mark.parametrize(
        "id", ["file-x", "file-" + "0" * 32, "nothing", "%00", "x" * 300, "batch_" + "0" * 32]
    )
    def test_an_unknown_id(self, each_api: Api, id: str) -> None:
        for answer in (
            each_api.get(f"{FILES}/{id}"),
            each_api.get(f"{FILES}/{id}/content"),
            each_api.delete(f"{FILES}/{id}"),
        ):
            assert answer.status_code == 404
            assert error_of(answer)["param"] == "id"


class TestList:
    def test_pages_in_both_orders(self, each_api: Api) -> None:
        """The newest first where nothing is said."""
        api = each_api
        ids = [stored(api)["id"] for _ in range(5)]
        assert listed(api) == ids[::-1]
        assert listed(api, "?order=desc") == ids[::-1]
        assert listed(api, "?order=asc") == ids
        page = api.get(f"{FILES}?limit=2&order=asc").json()
        assert page == {
            "object": "list",
            "data": [api.get(f"{FILES}/{id}").json() for id in ids[:2]],
            "first_id": ids[0],
            "last_id": ids[1],
            "has_more": True,
        }
        assert listed(api, f"?limit=2&order=asc&after={ids[1]}") == ids[2:4]
        page = api.get(f"{FILES}?limit=2&order=asc&after={ids[3]}").json()
        assert ([file["id"] for file in page["data"]], page["has_more"]) == (ids[4:], False)
        assert listed(api, f"?after={ids[2]}") == [ids[1], ids[0]]

    def test_deleting_while_paging(self, api: Api) -> None:
        """A page goes on after a file that is gone by then."""
        ids = [stored(api)["id"] for _ in range(4)]
        assert listed(api, "?limit=2") == [ids[3], ids[2]]
        for id in ids[2:]:
            assert api.delete(f"{FILES}/{id}").status_code == 200
        assert listed(api, f"?limit=2&after={ids[2]}") == [ids[1], ids[0]]

    def test_by_purpose(self, each_api: Api) -> None:
        batch, evals = stored(each_api)["id"], stored(each_api, purpose="evals")["id"]
        assert listed(each_api, "?purpose=evals") == [evals]
        assert listed(each_api, "?purpose=batch") == [batch]
        assert listed(each_api, "?purpose=batch_output") == []

    def test_an_empty_one(self, each_api: Api) -> None:
        assert each_api.get(FILES).json() == {
            "object": "list",
            "data": [],
            "first_id": None,
            "last_id": None,
            "has_more": False,
        }

    @pytest.mark.parametrize(
        ("query", "param"),
        [
            ("limit=0", "limit"),
            ("limit=10001", "limit"),
            ("limit=x", "limit"),
            ("order=up", "order"),
            ("purpose=x", "purpose"),
            ("after=x", "after"),
            ("before=x", "before"),
        ],
    )
    def test_a_bad_query_is_refused_and_named(self, api: Api, query: str, param: str) -> None:
        answer = api.get(f"{FILES}?{query}")
        assert answer.status_code == 400
        assert error_of(answer)["param"] == param


class TestDeleting:
    def test_the_bytes_go_too(self, each_stack: Stack, each_api: Api) -> None:
        id = stored(each_api)["id"]
        assert id in names(each_stack)
        answer = each_api.delete(f"{FILES}/{id}")
        assert (answer.status_code, answer.json()) == (200, {"id": id, "object": "file", "deleted": True})
        assert id not in names(each_stack)
        assert each_api.delete(f"{FILES}/{id}").status_code == 404

    def test_not_while_a_batch_reads_it(self, each_stack: Stack, each_api: Api) -> None:
        """409 until the batch has ended."""
        id = stored(each_api)["id"]
        batch = open_batch(each_stack, each_api, id)
        answer = each_api.delete(f"{FILES}/{id}")
        assert answer.status_code == 409
        assert error_of(answer)["code"] == "file_in_use"
        assert each_api.get(f"{FILES}/{id}/content").content == LINE
        with writing(each_stack.engine) as connection:
            connection.execute(update(batches).where(batches.c.id == batch).values(ended_ms=1))
        assert each_api.delete(f"{FILES}/{id}").status_code == 200


def open_batch(stack: Stack, api: Api, input_file_id: str) -> str:
    """A batch that has not ended, and that nobody works at."""
    id, now = new_batch_id(), int(time.time() * 1000)
    counts = ("total", "completed", "failed")
    tokens = ("prompt_tokens", "completion_tokens", "reasoning_tokens", "cached_tokens")
    row: dict[str, Any] = {
        "id": id,
        "tenant": api.tenant,
        "key_id": api.key_id,
        "endpoint": "/v1/chat/completions",
        "input_file_id": input_file_id,
        "status": "finalizing",
        "completion_window": "24h",
        "max_concurrency": 1,
        "max_error_rate": 0.5,
        **dict.fromkeys((*counts, *tokens), 0),
        "created_ms": now,
        "expires_ms": now + 3_600_000,
        "token": "nobody",
        "until_ms": now + 3_600_000,
    }
    with writing(stack.engine) as connection:
        connection.execute(insert(batches).values(row))
    return id


class TestWhose:
    def test_another_tenant_sees_nothing(self, each_stack: Stack, each_api: Api) -> None:
        """404 as for what isn't there, and nothing is deleted."""
        id = stored(each_api)["id"]
        with each_stack.api() as other:
            theirs = stored(other)["id"]
            assert listed(other) == [theirs]
            for answer in (
                other.get(f"{FILES}/{id}"),
                other.get(f"{FILES}/{id}/content"),
                other.delete(f"{FILES}/{id}"),
            ):
                assert answer.status_code == 404
                assert error_of(answer)["message"] == f"There is no file '{id}'."
        assert each_api.get(f"{FILES}/{id}/content").content == LINE
        assert listed(each_api) == [id]

    def test_another_key_of_the_tenant_sees_it(self, stack: Stack, api: Api) -> None:
        id = stored(api)["id"]
        with stack.api(api.tenant) as other:
            assert listed(other) == [id]
            assert other.delete(f"{FILES}/{id}").status_code == 200
        assert listed(api) == []

    def test_an_end_user_sees_his_own(self, each_api: Api) -> None:
        """And a request without X-On-Behalf-Of all of the tenant's."""
        api, ann, bob = each_api, encoded(named("ann")), encoded(named("bob"))
        hers, his, ours = stored(api, headers=ann)["id"], stored(api, headers=bob)["id"], stored(api)["id"]
        assert listed(api) == [ours, his, hers]
        assert listed(api, headers=ann) == [hers]
        for id in (his, ours):
            assert api.get(f"{FILES}/{id}", headers=ann).status_code == 404
            assert api.get(f"{FILES}/{id}/content", headers=ann).status_code == 404
            assert api.delete(f"{FILES}/{id}", headers=ann).status_code == 404
        assert api.delete(f"{FILES}/{hers}", headers=ann).status_code == 200
        assert api.delete(f"{FILES}/{his}").status_code == 200
