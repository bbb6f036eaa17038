"""The pipelined connection: replies in order, pushes between them, and no call that waits for ever."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import hiredis
import pytest
import redis

from stores import wire as wire_module
from stores.wire import Address, Wire, WireError
from tests.conftest import StartValkey
from tests.support.fake_redis import Command, fake_redis, greet
from tests.support.waiting import until


@pytest.fixture
async def wire(redis_url: str) -> AsyncIterator[Wire]:
    made = await Wire.connect(Address.from_url(redis_url))
    yield made
    made.close()


def count_writes(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the connection writes from now on."""
    written: list[bytes] = []

    class Counting:
        def __init__(self, transport: Any) -> None:
            self._transport = transport

        def write(self, data: bytes) -> None:
            written.append(data)
            self._transport.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._transport, name)

    monkeypatch.setattr(wire, "_transport", Counting(wire._transport))
    return written


# -- Addresses


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://", Address()),
        ("redis://h", Address(host="h")),
        ("redis://h:1/2", Address(host="h", port=1, database=2)),
        ("redis://h?db=3", Address(host="h", database=3)),
        ("redis://:p%40%2F@h", Address(host="h", password="p@/")),
        ("redis://u:p@[::1]:7/", Address(host="::1", port=7, username="u", password="p")),
        ("rediss://h", Address(host="h", tls=True)),
        ("unix:///run/r.sock?db=4", Address(path="/run/r.sock", database=4)),
        ("unix://u:p@/run/r.sock", Address(path="/run/r.sock", username="u", password="p")),
    ],
)
def test_urls(url: str, address: Address) -> None:
    """A URL says where the server is, how to greet it and which database to use."""
    assert Address.from_url(url) == address


@pytest.mark.parametrize(
    "url",
    ["http://h", "h:6379", "", "redis://h:x", "redis://h:99999", "redis://h/x", "redis://h/-1", "unix://"],
)
def test_unusable_urls(url: str) -> None:
    """A URL of another kind, or with a port or database that isn't one, is a ValueError of one line."""
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        Address.from_url(url)


def test_a_label_never_shows_the_password() -> None:
    """Messages name the server without its credentials."""
    assert "secret" not in Address.from_url("redis://u:secret@h:1").label
    assert Address.from_url("unix://:secret@/r.sock").label == "/r.sock"


# -- Calls


async def test_calls_of_one_turn_leave_in_one_write(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand calls that are made together go out in one write, and their replies come back in order."""
    written = count_writes(wire, monkeypatch)
    answers = await asyncio.gather(*(wire.call("ECHO", str(i)) for i in range(1000)))
    assert answers == [str(i).encode() for i in range(1000)]
    assert len(written) == 1


async def test_an_error_reply_is_one_calls(wire: Wire) -> None:
    """A command that fails raises its own error and leaves its neighbours alone."""
    answers = await asyncio.gather(
        wire.call("SET", "k", "text", "EX", 60),
        wire.call("INCR", "k"),
        wire.call("NOSUCH"),
        wire.call("GET", "k"),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [bytes, hiredis.ReplyError, hiredis.ReplyError, bytes]
    assert answers[3] == b"text"


async def test_every_kind_of_reply(wire: Wire) -> None:
    """Nil, booleans, numbers, maps and nested arrays come as Python values, and none is taken for silence."""
    script = "redis.setresp(3); return {false, true, 1, 'x', {map={a={double=0.5}}}}"
    assert await wire.call("EVAL", script, 0) == [False, True, 1, b"x", {b"a": 0.5}]
    for told, value in (("false", False), ("true", True), ("nil", None)):
        assert await wire.call("EVAL", f"redis.setresp(3); return {told}", 0) is value
    assert await wire.call("PING") == b"PONG"


async def test_a_call_that_nobody_waits_for_takes_its_reply_along(wire: Wire) -> None:
    """Cancelled calls and calls without a future don't shift the replies of the others."""
    first = wire.call("ECHO", "1")
    second = wire.call("ECHO", "2")
    wire.send(("ECHO", "3"), None)
    first.cancel()
    assert await wire.call("ECHO", "4") == b"4"
    assert await second == b"2"


async def test_values_of_megabytes(wire: Wire) -> None:
    """Large values go and come whole; ``drained`` holds a writer back while the socket is full."""
    value = bytes(range(256)) * 65536
    calls = [wire.call("ECHO", value) for _ in range(3)]
    await asyncio.sleep(0)
    await wire.drained()
    assert all(answer == value for answer in await asyncio.gather(*calls))


async def test_pushes_come_between_replies(redis_url: str, redis_client: redis.Redis) -> None:
    """Messages of subscribed channels arrive whole and in order while calls are answered on the same connection."""
    pushes: list[list[Any]] = []
    wire = await Wire.connect(Address.from_url(redis_url), on_push=pushes.append)
    wire.push_command("SSUBSCRIBE", "c")
    await wire.call("PING")
    for i in range(100):
        redis_client.spublish("c", str(i))
        assert await wire.call("ECHO", str(i)) == str(i).encode()
    wire.push_command("SUNSUBSCRIBE", "c")
    await wire.call("PING")
    assert [p[:1] for p in pushes if p[0] != b"smessage"] == [[b"ssubscribe"], [b"sunsubscribe"]]
    assert [p[1:] for p in pushes if p[0] == b"smessage"] == [[b"c", str(i).encode()] for i in range(100)]
    wire.close()


# -- Who is let in


async def test_a_password(start_valkey: StartValkey) -> None:
    """The right password opens the connection, with any character in it; a wrong one and none are refused at once."""
    password = "p@ss/wörd:%#?"
    server = start_valkey(password=password)
    wire = await Wire.connect(Address.from_url(server.url))
    assert await wire.call("ACL", "WHOAMI") == b"default"
    await wire.call("ACL", "SETUSER", "someone", "on", ">secret", "+@all", "~*", "&*")
    wire.close()
    named = await Wire.connect(
        Address.from_url(server.url.replace(f":{quote(password, safe='')}", "someone:secret"))
    )
    assert await named.call("ACL", "WHOAMI") == b"someone"
    named.close()
    for wrong, reason in (
        (f"redis://:wrong@127.0.0.1:{server.port}", "WRONGPASS"),
        (f"redis://127.0.0.1:{server.port}", "NOAUTH"),
    ):
        with pytest.raises(WireError, match=reason):
            await Wire.connect(Address.from_url(wrong))
    with server.client() as client:
        await until(lambda: len(client.client_list()) == 1)  # refused connections are closed


async def test_a_unix_socket(start_valkey: StartValkey, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A server is reached through its socket file, and one that isn't there says so."""
    path = tmp_path_factory.mktemp("s") / "valkey.sock"
    start_valkey(config={"unixsocket": str(path)})
    wire = await Wire.connect(Address.from_url(f"unix://{path}?db=2"))
    assert await wire.call("PING") == b"PONG"
    assert " db=2 " in (await wire.call("CLIENT", "INFO")).decode()
    wire.close()
    with pytest.raises(WireError, match=r"missing\.sock"):
        await Wire.connect(Address.from_url(f"unix://{path.parent}/missing.sock"))


async def test_a_database_number(redis_url: str) -> None:
    """The URL's database is selected; one that the server doesn't have is refused."""
    wire = await Wire.connect(Address.from_url(redis_url.replace("/0", "/5")))
    assert " db=5 " in (await wire.call("CLIENT", "INFO")).decode()
    wire.close()
    with pytest.raises(WireError, match="out of range"):
        await Wire.connect(Address.from_url(redis_url.replace("/0", "/5000")))


@pytest.mark.parametrize("host", ["127.0.0.1:1", "no.such.host.invalid", "a..b", "x" * 70])
async def test_nobody_there(host: str) -> None:
    """A refused connection and a name that leads nowhere are WireErrors that name the server."""
    with pytest.raises(WireError, match=host.split(":", maxsplit=1)[0]):
        await Wire.connect(Address.from_url(f"redis://{host}"), timeout=10)


# -- Silence and nonsense


async def silence(command: Command, writer: asyncio.StreamWriter) -> None:
    pass


async def greeting_alone(command: Command, writer: asyncio.StreamWriter) -> None:
    await greet(command, writer)


async def test_a_server_that_never_greets() -> None:
    """A server that takes the connection and says nothing is given up after the timeout, and the connection closed."""
    async with fake_redis(silence) as fake:
        with pytest.raises(WireError, match="no answer"):
            await Wire.connect(Address.from_url(fake.url), timeout=0.1)
        assert fake.connections == 1
        await until(lambda: fake.open == 0, 2)


async def test_a_cancelled_connect_leaves_no_connection() -> None:
    """Giving up on a connection that is being made closes it."""
    async with fake_redis(silence) as fake:
        task = asyncio.create_task(Wire.connect(Address.from_url(fake.url)))
        await until(lambda: bool(fake.commands))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: fake.open == 0, 2)


async def test_a_server_that_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that get no reply fail once nothing was heard for REPLY_TIMEOUT, and the connection is given up."""
    monkeypatch.setattr(wire_module, "REPLY_TIMEOUT", 0.1)
    lost: list[Wire] = []
    async with fake_redis(greeting_alone) as fake:
        wire = await Wire.connect(Address.from_url(fake.url), on_lost=lost.append)
        calls = [wire.call("PING"), wire.call("PING")]
        for call in calls:
            with pytest.raises(WireError, match="not answered"):
                await call
        assert wire.closed
        assert lost == [wire]
        await until(lambda: fake.open == 0)


async def test_a_stopped_server(start_valkey: StartValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real server that is stopped while its sockets stay open is a lost connection, not a call that hangs."""
    monkeypatch.setattr(wire_module, "REPLY_TIMEOUT", 0.2)
    server = start_valkey()
    wire = await Wire.connect(Address.from_url(server.url))
    with server.paused(), pytest.raises(WireError, match="not answered"):
        await wire.call("PING")


async def test_an_idle_connection_is_no_silent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is counted from the call, not from the last thing heard before it: a short reply in time is in time."""
    timeout, slow = 0.6, 0.25

    async def answer(command: Command, writer: asyncio.StreamWriter) -> None:
        if not await greet(command, writer):
            if command[0] == b"SLOW":
                await asyncio.sleep(slow)
            writer.write(b"+OK\r\n")

    monkeypatch.setattr(wire_module, "REPLY_TIMEOUT", timeout)
    async with fake_redis(answer) as fake:
        wire = await Wire.connect(Address.from_url(fake.url))
        loop = asyncio.get_running_loop()
        await wire.call("PING")
        heard = loop.time()
        await until(lambda: loop.time() - heard > timeout - slow / 2)
        assert await wire.call("SLOW") == b"OK"
        wire.close()


async def test_a_half_closed_connection() -> None:
    """A server that closes its side ends the connection for the calls that wait."""

    async def answer(command: Command, writer: asyncio.StreamWriter) -> None:
        if not await greet(command, writer):
            writer.write_eof()

    async with fake_redis(answer) as fake:
        wire = await Wire.connect(Address.from_url(fake.url))
        with pytest.raises(WireError, match="lost"):
            await wire.call("PING")
        with pytest.raises(WireError, match="closed"):
            await wire.call("PING")


@pytest.mark.parametrize("nonsense", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK\r\n+OK\r\n", b"*2\r\n?\r\n"])
async def test_replies_that_make_no_sense(nonsense: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """What is not RESP, and a reply that nobody asked for, end the connection: nothing after them can be trusted."""

    async def answer(command: Command, writer: asyncio.StreamWriter) -> None:
        if not await greet(command, writer):
            writer.write(nonsense)

    lost = asyncio.Event()
    async with fake_redis(answer) as fake:
        wire = await Wire.connect(Address.from_url(fake.url), on_lost=lambda _: lost.set())
        with caplog.at_level(logging.ERROR, "asyncio"):
            await asyncio.gather(wire.call("PING"), return_exceptions=True)
            await asyncio.wait_for(lost.wait(), 5)
        assert wire.closed
        assert not caplog.records


async def test_a_server_of_another_kind() -> None:
    """A web server in Redis's place is told from a Redis that is away."""

    async def answer(command: Command, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with fake_redis(answer) as fake:
        with pytest.raises(WireError, match="not RESP"):
            await Wire.connect(Address.from_url(fake.url))


# -- The end of a connection


async def test_a_killed_connection(wire: Wire, redis_client: redis.Redis) -> None:
    """When the server cuts the connection, every call that waits fails, and so do all after it."""
    mine = await wire.call("CLIENT", "ID")
    await wire.call("CLIENT", "NO-EVICT", "on")
    calls = [wire.call("BLPOP", "empty", 0), *(wire.call("PING") for _ in range(10))]
    redis_client.client_kill_filter(_id=mine)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, WireError) for answer in answers)
    with pytest.raises(WireError):
        await wire.call("PING")


async def test_close(redis_url: str) -> None:
    """Closing fails what waits, tells ``on_lost`` once, and may be done twice."""
    lost: list[Wire] = []
    wire = await Wire.connect(Address.from_url(redis_url), on_lost=lost.append)
    call = wire.call("PING")
    wire.close()
    wire.close()
    with pytest.raises(WireError, match="closed"):
        await call
    wire.push_command("SSUBSCRIBE", "x")
    wire.send(("PING",), None)
    assert lost == [wire]
