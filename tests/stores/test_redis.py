"""A key space: how many partitions it has, which server it is on, and calls that outlast the server's absence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import hiredis
import pytest
import redis

from schemas.errors import ConfigurationError, Unavailable
from schemas.ids import new_completion_id, partition_of
from stores import wire as wire_module
from stores.redis import Redis, Script
from tests.conftest import StartValkey
from tests.support.fake_redis import Command, fake_redis, greet
from tests.support.valkey import ValkeyServer
from tests.support.waiting import until

LEAD = Script("lead")


@pytest.fixture
def ours(redis_client: redis.Redis) -> Callable[[], int]:
    """How many connections the server has beside the one that counts them; none at first."""
    redis_client.client_kill_filter(skipme=True)
    return lambda: len(redis_client.client_list()) - 1


@asynccontextmanager
async def opened(url: str, *, partitions: int | None = None, patience: float = 5.0) -> AsyncGenerator[Redis]:
    made = await Redis.open(url, partitions=partitions, patience=patience)
    try:
        yield made
    finally:
        made.close()


async def lead(space: Redis, token: str = "t", *, patience: float = 5.0) -> int:
    """A script that stands for all of them."""
    keys = space.keyspace[0]
    names = [keys.lock("test"), keys.rank("test"), keys.heard]
    return await space.script(0, LEAD, names, [token, 60_000, 0, 0], patience=patience)


# -- Partitions


async def test_the_number_of_partitions_is_agreed_upon(
    redis_url: str, redis_client: redis.Redis, ours: Callable[[], int]
) -> None:
    """The first process writes the number down, and one that is set to another refuses to start, with a hint."""
    async with opened(redis_url, partitions=4) as first, opened(redis_url, partitions=4):
        assert first.partitions == 4
        assert redis_client.get("tailrace:{p0}:partitions") == "4"
        with pytest.raises(
            ConfigurationError, match=r"4 partitions.*says 8.*TAILRACE_PARTITIONS=4"
        ) as refusal:
            await Redis.open(redis_url, partitions=8)
        assert refusal.value.param == "TAILRACE_PARTITIONS"
    await until(lambda: ours() == 0)


async def test_a_process_without_the_setting_takes_what_is_there(redis_url: str) -> None:
    """Without the setting there is one partition, or as many as the key space was made with."""
    async with opened(redis_url, partitions=4), opened(redis_url) as second:
        assert second.partitions == 4
        assert [keys.partition for keys in second.keyspace] == [0, 1, 2, 3]
        for i in range(8):
            assert second.keys(str(i)).partition == partition_of(str(i), 4)
        assert await second.command(3, "PING") == b"PONG"


async def test_the_default_is_one_partition(redis_url: str) -> None:
    """A lone server has one partition where nobody says otherwise."""
    async with opened(redis_url) as space:
        assert space.partitions == 1
        assert not space.cluster
        assert list(space.nodes().values()) == [[0]]


async def test_many_processes_start_at_once(redis_url: str) -> None:
    """Of processes that start together with different numbers, those of one number win, and only those."""
    tries = [Redis.open(redis_url, partitions=n) for n in (2, 3, 2, 3, 2, 3)]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    spaces = [outcome for outcome in outcomes if isinstance(outcome, Redis)]
    assert len({space.partitions for space in spaces}) == 1
    assert len(spaces) == 3
    assert sum(isinstance(outcome, ConfigurationError) for outcome in outcomes) == 3
    for space in spaces:
        space.close()


async def test_each_database_is_a_key_space(redis_url: str) -> None:
    """Databases of one server have their own partitions and keys."""
    other = redis_url.replace("/0", "/7")
    async with opened(redis_url, partitions=2) as a, opened(other, partitions=3) as b:
        await a.command(0, "SET", "k", "a", "EX", 60)
        assert await b.command(0, "GET", "k") is None
        assert (a.partitions, b.partitions) == (2, 3)
        await b.command(0, "FLUSHDB")
        assert await a.command(0, "GET", "k") == b"a"


async def test_a_full_server_lets_processes_start(start_valkey: StartValkey) -> None:
    """At maxmemory a process still starts on a key space that was made before: work that is there must go on."""
    server = start_valkey(config={"maxmemory": "100mb"})
    async with opened(server.url, partitions=2):
        pass
    with server.client() as client:
        client.config_set("maxmemory", 1)
    async with opened(server.url, partitions=2) as space:
        assert await lead(space) == 1


# -- Who can't be opened


@pytest.mark.parametrize("url", ["http://127.0.0.1", "redis://h:port", "redis://h/zero", "unix://"])
async def test_an_unusable_url(url: str) -> None:
    """A URL that isn't one is a configuration error of one line that names the setting."""
    with pytest.raises(ConfigurationError, match=r"^TAILRACE_REDIS_URL: [^\n]+$"):
        await Redis.open(url)


async def test_a_wrong_password_is_not_waited_for(start_valkey: StartValkey) -> None:
    """No password, a wrong one, and a user who may not, are refused at once, whatever the patience."""
    server = start_valkey(password="right")
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "weak", "on", ">pw", "+hello")
    for user in ("", ":wrong@", "weak:pw@"):
        with pytest.raises(ConfigurationError, match="TAILRACE_REDIS_URL"):
            await asyncio.wait_for(Redis.open(f"redis://{user}127.0.0.1:{server.port}", patience=60), 5)
    async with opened(server.url):
        pass


async def test_a_database_that_does_not_exist(redis_url: str) -> None:
    """A database number beyond the server's is a configuration error at once."""
    with pytest.raises(ConfigurationError, match="out of range"):
        await asyncio.wait_for(Redis.open(redis_url.replace("/0", "/9999"), patience=60), 5)


async def test_nobody_there() -> None:
    """Where nothing answers, patience ends with Unavailable that says what to do."""
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 .*TAILRACE_REDIS_URL"):
        await Redis.open("redis://127.0.0.1:1", patience=0.3)


async def silence(command: Command, writer: asyncio.StreamWriter) -> None:
    pass


async def web_server(command: Command, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def hang_up(command: Command, writer: asyncio.StreamWriter) -> None:
    if not await greet(command, writer):
        writer.close()


async def greeting_alone(command: Command, writer: asyncio.StreamWriter) -> None:
    await greet(command, writer)


@pytest.mark.parametrize("answer", [silence, web_server, hang_up, greeting_alone])
async def test_nobody_of_use_there(
    answer: Callable[[Command, asyncio.StreamWriter], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that says nothing, nonsense, or goodbye is Unavailable when patience ends, and no connection stays."""
    monkeypatch.setattr(wire_module, "CONNECT_TIMEOUT", 0.2)
    monkeypatch.setattr(wire_module, "REPLY_TIMEOUT", 0.2)
    async with fake_redis(answer) as fake:
        with pytest.raises(Unavailable):
            await asyncio.wait_for(Redis.open(fake.url, patience=0.3), 10)
        await until(lambda: fake.open == 0)


async def test_a_server_that_comes_later(start_valkey: StartValkey) -> None:
    """A process may start before its Redis does, and after a Redis that is still loading its data."""
    server = start_valkey()
    server.stop()
    opening = asyncio.create_task(Redis.open(server.url, patience=30))
    await asyncio.sleep(0)
    await asyncio.to_thread(server.start)
    space = await opening
    assert await lead(space) == 1
    space.close()


# -- Calls that outlast an absence


async def test_scripts_after_they_were_flushed(redis_url: str, redis_client: redis.Redis) -> None:
    """A server that forgot the scripts is sent them again, whoever comes first and however many at once."""
    async with opened(redis_url) as space:
        assert await lead(space) == 1
        redis_client.script_flush()
        assert await asyncio.gather(*(lead(space) for _ in range(20))) == [1] * 20


@pytest.fixture(params=["stop", "kill"])
def end_server(request: pytest.FixtureRequest) -> Callable[[ValkeyServer], None]:
    return {"stop": ValkeyServer.stop, "kill": ValkeyServer.kill}[request.param]


async def test_calls_over_a_restart(
    start_valkey: StartValkey, end_server: Callable[[ValkeyServer], None]
) -> None:
    """Calls that are made while the server is away are answered when it is back, over one connection."""
    server = start_valkey(appendonly=True)
    async with opened(server.url) as space:
        assert await lead(space) == 1
        end_server(server)
        calls = [asyncio.create_task(lead(space, patience=30)) for _ in range(50)]
        calls.append(
            asyncio.create_task(space.command(0, "EXISTS", space.keyspace[0].lock("test"), patience=30))
        )
        await until(lambda: space.node(0).open_wire is None)
        await asyncio.to_thread(server.start)
        assert await asyncio.gather(*calls) == [1] * 51
        with server.client() as client:
            assert len(client.client_list()) == 2


async def test_patience_ends(start_valkey: StartValkey) -> None:
    """A call whose patience ends before the server is back is Unavailable; the next one works again."""
    server = start_valkey()
    async with opened(server.url) as space:
        server.kill()
        with pytest.raises(Unavailable, match="not available"):
            await lead(space, patience=0.2)
        with pytest.raises(Unavailable, match="not available"):
            await space.command(0, "PING", patience=0.2)
        await asyncio.to_thread(server.start)
        assert await lead(space) == 1


async def test_a_connection_that_was_cut(
    redis_url: str, redis_client: redis.Redis, ours: Callable[[], int]
) -> None:
    """After CLIENT KILL every call goes on over one new connection, and none is lost."""
    async with opened(redis_url) as space:
        for _ in range(5):
            calls = [space.command(0, "ECHO", str(i)) for i in range(50)]
            tasks = [asyncio.create_task(call) for call in calls]
            await asyncio.sleep(0)
            redis_client.client_kill_filter(skipme=True, _type="normal")
            assert await asyncio.gather(*tasks) == [str(i).encode() for i in range(50)]
        await until(lambda: ours() == 1)


@pytest.mark.parametrize(
    "error",
    [
        "LOADING Redis is loading the dataset in memory",
        "BUSY Redis is busy running a script",
        "MASTERDOWN x",
        "READONLY x",
        "TRYAGAIN x",
    ],
)
async def test_errors_that_pass_are_waited_out(error: str) -> None:
    """A server that says "not now" is asked again."""
    refusals = 3

    async def answer(command: Command, writer: asyncio.StreamWriter) -> None:
        nonlocal refusals
        if await greet(command, writer):
            return
        if command[0] == b"INFO":
            writer.write(b"+cluster_enabled:0\r\n")
        elif command[0] in (b"GET", b"SET"):
            writer.write(b"$1\r\n1\r\n")
        elif refusals:
            refusals -= 1
            writer.write(f"-{error}\r\n".encode())
        else:
            writer.write(b":7\r\n")

    async with fake_redis(answer) as fake, opened(fake.url) as space:
        assert await lead(space) == 7
        refusals = 2
        assert await space.command(0, "DBSIZE") == 7


async def test_other_errors_are_raised_at_once(redis_url: str, redis_client: redis.Redis) -> None:
    """An error that time won't mend is the caller's, of a command, of several and of a script."""
    async with opened(redis_url) as space:
        lock = space.keyspace[0].lock("test")
        redis_client.hset(lock, "a", "b")
        redis_client.expire(lock, 60)
        for call in (
            lead(space, patience=60),
            space.command(0, "INCR", lock, patience=60),
            space.commands(0, [("PING",), ("INCR", lock)], patience=60),
        ):
            with pytest.raises(hiredis.ReplyError, match="WRONGTYPE"):
                await asyncio.wait_for(call, 5)


async def test_a_key_space_has_one_connection(redis_url: str, ours: Callable[[], int]) -> None:
    """Hundreds of calls at once, on all partitions, open one connection; closing leaves none."""
    async with opened(redis_url, partitions=8) as space:
        ids = [new_completion_id() for _ in range(300)]
        answers = await asyncio.gather(*(space.command(space.partition(i), "ECHO", i) for i in ids))
        assert [answer.decode() for answer in answers] == ids
        assert ours() == 1
    await until(lambda: ours() == 0)
