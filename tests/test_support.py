"""The tests' own ground: faults come as ordered, and the leak check sees leaks."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis

from tests.support.backend import Backend, BackendProcess, read_journal
from tests.support.leaks import leaks
from tests.support.postgres import PostgresServer
from tests.support.tries import sampled_word
from tests.support.valkey import ValkeyCluster, ValkeyServer, wait_until

GENERATION = "chatcmpl-0190"


def ask(
    url: str, *, model: str = "fake", usage: bool = False, timeout: float = 10, **body: Any
) -> httpx.Response:
    """POST a streaming request; the response is read whole."""
    options = {"stream_options": {"include_usage": True}} if usage else {}
    request = {
        "model": model,
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        **options,
        **body,
    }
    return httpx.post(f"{url}/chat/completions", json=request, timeout=timeout)


def events(body: str) -> list[Any]:
    """The JSON of every event but [DONE]."""
    data = [line.removeprefix("data: ") for line in body.replace("\r\n", "\n").split("\n\n") if line]
    return [json.loads(d) for d in data if d != "[DONE]"]


def content(body: str) -> str:
    return "".join(
        choice["delta"].get("content") or "" for event in events(body) for choice in event.get("choices", ())
    )


class TestAnswers:
    def test_an_answer_without_orders_is_role_content_finish_and_done(self, backend: Backend) -> None:
        """Ten chunks between a role and a finish reason, and no usage unless it is asked for."""
        body = ask(backend.url).text
        first, *_, last = events(body)
        assert first["choices"][0]["delta"]["role"] == "assistant"
        assert last["choices"][0]["finish_reason"] == "stop"
        assert content(body) == "".join(f" tok{i}" for i in range(10))
        assert body.endswith("data: [DONE]\n\n")
        assert "usage" not in body

    def test_usage_comes_last_when_asked_for(self, backend: Backend) -> None:
        """It counts the chunks."""
        last = events(ask(backend.url, usage=True, fake={"chunks": 3}).text)[-1]
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 3

    def test_several_choices_interleave(self, backend: Backend) -> None:
        """Each choice has its own text and its own end."""
        chunks = [e["choices"][0] for e in events(ask(backend.url, n=3, fake={"chunks": 2}).text)]
        assert [c["index"] for c in chunks] == [0, 1, 2] * 4
        assert [c["finish_reason"] for c in chunks[-3:]] == ["stop"] * 3

    def test_tool_calls_come_in_pieces(self, backend: Backend) -> None:
        """Two calls, whose arguments are JSON once joined."""
        arguments: dict[int, str] = {}
        for event in events(ask(backend.url, fake={"tool_calls": True}).text):
            for call in event["choices"][0]["delta"].get("tool_calls", ()):
                arguments[call["index"]] = arguments.get(call["index"], "") + call["function"]["arguments"]
        assert {i: json.loads(a) for i, a in arguments.items()} == {0: {"city": "Paris"}, 1: {"zone": "UTC"}}

    def test_without_stream_the_answer_is_one_object(self, backend: Backend) -> None:
        """The same text as the stream's."""
        answer = ask(backend.url, stream=False, fake={"text": "to be or not"}).json()
        assert answer["choices"][0]["message"]["content"] == "to be or not"

    def test_tries_are_counted_by_name_and_over_a_restart(self, tmp_path: Path) -> None:
        """The first two fail, whichever process of the backend is asked; then the same words come in other pieces."""
        text = "".join(f" w{i}" for i in range(30))
        orders: list[Any] = [{"status": 500}, {"status": 429}, {"text": text, "varied": True}]
        seen: list[tuple[int, str]] = []
        cuts: set[int] = set()
        for _ in range(2):
            with Backend(journal=tmp_path / "journal") as backend:
                for _ in range(3):
                    answer = ask(backend.url, fake=orders, fake_id="a")
                    said = events(answer.text) if answer.status_code == 200 else []
                    seen.append((answer.status_code, content(answer.text) if said else ""))
                    cuts.add(len(said))
        assert seen == [(500, ""), (429, ""), *[(200, text)] * 4]
        assert len(cuts - {0}) > 1
        assert read_journal(tmp_path / "journal") == [b"a"] * 6

    def test_a_sampled_answer_names_its_try(self, backend: Backend) -> None:
        for attempt in (1, 2):
            body = ask(backend.url, fake={"chunks": 3, "sampled": True}, fake_id="b").text
            assert content(body) == "".join(sampled_word(attempt, place, 0) for place in range(3))

    def test_chunks_come_at_their_pace(self, backend: Backend) -> None:
        """100 chunks 5 ms apart take half a second: a late timer sends what is due by then, all of it."""
        ask(backend.url, fake={"chunks": 100, "interval_ms": 5})
        (request,) = backend.completions
        assert request.first_byte_at is not None
        assert request.ended_at is not None
        assert 0.49 <= request.ended_at - request.first_byte_at < 10

    async def test_it_counts_what_runs_at_once(self, backend: Backend) -> None:
        """`active` now, `peak` at most; a client that goes away ends its stream."""
        request = {"model": "fake", "messages": [], "stream": True, "fake": {"stall_after": 1}}
        async with httpx.AsyncClient() as client, AsyncExitStack() as streams:
            for _ in range(20):
                answer = client.stream("POST", f"{backend.url}/chat/completions", json=request)
                await streams.enter_async_context(answer)
            assert backend.active == 20
        backend.wait_until(lambda: backend.active == 0)
        assert backend.peak == 20
        assert {r.ended for r in backend.completions} == {"closed"}


class TestFaults:
    @pytest.mark.parametrize("at", [0, 1, 300, 500])
    def test_the_connection_is_cut_at_the_byte(self, backend: Backend, at: int) -> None:
        """The client gets exactly those bytes and no end of the body."""
        got = b""
        request = {"model": "fake", "messages": [], "stream": True, "fake": {"cut_at_byte": at}}
        with (
            httpx.stream("POST", f"{backend.url}/chat/completions", json=request) as response,
            pytest.raises(httpx.RemoteProtocolError),
        ):
            for piece in response.iter_raw():
                got += piece
        assert len(got) == at
        assert backend.completions[0].ended == "cut"

    def test_a_reset_is_an_error_of_reading(self, backend: Backend) -> None:
        """RST rather than FIN."""
        with pytest.raises(httpx.ReadError):
            ask(backend.url, fake={"cut_at_byte": 300, "cut": "reset"})

    def test_a_stalled_stream_stays_open_until_the_client_leaves(self, backend: Backend) -> None:
        """And the backend notes that the client left."""
        with pytest.raises(httpx.ReadTimeout):
            ask(backend.url, timeout=0.2, fake={"stall_after": 2})
        backend.wait_until(lambda: backend.completions[0].ended == "closed")

    def test_a_failure_has_status_headers_and_error(self, backend: Backend) -> None:
        """As ordered."""
        order = {
            "status": 429,
            "headers": {"retry-after": "3"},
            "error": {"message": "slow down", "code": "rate"},
        }
        answer = ask(backend.url, fake=order)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
        assert answer.json()["error"]["message"] == "slow down"

    def test_a_list_orders_attempt_by_attempt(self, backend: Backend) -> None:
        """The first fails, the second and all later ones succeed."""
        orders = [{"status": 500}, {"chunks": 1}]
        assert [ask(backend.url, fake=orders).status_code for _ in range(3)] == [500, 200, 200]

    def test_a_script_orders_for_requests_that_order_nothing(self, backend: Backend) -> None:
        """One entry each, then the default."""
        backend.script({"status": 401}, {"text": "two"})
        assert ask(backend.url).status_code == 401
        assert content(ask(backend.url).text) == "two"
        assert content(ask(backend.url).text).startswith(" tok0")

    def test_an_unknown_order_is_refused(self, backend: Backend) -> None:
        """A typing mistake in a test must not pass for a healthy backend."""
        answer = ask(backend.url, fake={"cut_at_bytes": 3})
        assert answer.status_code == 400
        assert "cut_at_bytes" in answer.text

    def test_dripping_keeps_the_bytes(self, backend: Backend) -> None:
        """One byte at a time is the same body."""
        whole = ask(backend.url, fake={"text": "Grüße 🙂"}).content
        assert ask(backend.url, fake={"text": "Grüße 🙂", "drip_bytes": 1}).content == whole

    def test_a_backend_that_is_down_refuses_and_comes_back(self, backend: Backend) -> None:
        """On the same port."""
        with backend.down(), pytest.raises(httpx.ConnectError):
            ask(backend.url)
        assert ask(backend.url).status_code == 200

    def test_as_a_process_it_tells_what_came_in(self) -> None:
        """Over HTTP: `GET /requests`."""
        with BackendProcess(record=True) as process:
            ask(process.url, model="fake-b")
            (request,) = httpx.get(f"{process.url.removesuffix('/v1')}/requests").json()
        assert request["body"]["model"] == "fake-b"
        assert request["ended"] == "complete"


class TestLeakCheck:
    """`redis_url` fails a test that leaves a key with neither TTL nor owner."""

    @pytest.mark.redis_keys(allow=["*"])
    @pytest.mark.parametrize(
        ("key", "why"),
        [
            ("tailrace:{p0}:gen:a", "state"),
            ("tailrace:{p0}:req:a", "not in flight"),
            ("tailrace:{p0}:log:a", "gone"),
            ("tailrace:{p0}:idem:a", "no owner"),
            ("tailrace:{p0}:lock:reaper", "no owner"),
            ("tailrace:{p0}:outbox", "are not queued"),
            ("elsewhere", "no key of Tailrace's"),
        ],
    )
    def test_an_orphan_is_a_leak(self, redis_client: redis.Redis, key: str, why: str) -> None:
        """Unless it has a TTL."""
        redis_client.hset(key, "x", "1")
        (leak,) = leaks(redis_client)
        assert key in leak
        assert why in leak
        redis_client.expire(key, 60)
        assert leaks(redis_client) == []

    @pytest.mark.redis_keys(allow=["*"])
    @pytest.mark.parametrize(
        ("kind", "state"),
        [
            ("queued:interactive", "queued"),
            ("recovery", "queued"),
            ("suspects", "queued"),
            ("parked", "parked"),
            ("lease", "leased"),
            ("deadlines", "parked"),
        ],
    )
    def test_a_place_is_for_what_waits_there(self, redis_client: redis.Redis, kind: str, state: str) -> None:
        """Work of another state in it, and work that is gone, are leaks."""
        redis_client.zadd(f"tailrace:{{p0}}:{kind}", {GENERATION: 1})
        redis_client.hset(f"tailrace:{{p0}}:gen:{GENERATION}", "state", state)
        assert leaks(redis_client) == []
        assert len(leaks(redis_client, settled=True)) == 2
        redis_client.hset(f"tailrace:{{p0}}:gen:{GENERATION}", "state", "completed")
        assert any(f"{kind}:" in leak for leak in leaks(redis_client))
        redis_client.delete(f"tailrace:{{p0}}:gen:{GENERATION}")
        (leak,) = leaks(redis_client)
        assert GENERATION in leak

    @pytest.mark.redis_keys(allow=["*"])
    def test_work_in_flight_owns_its_keys(self, redis_client: redis.Redis) -> None:
        """Until all work should be settled."""
        p = "tailrace:{p0}:"
        redis_client.hset(f"{p}gen:{GENERATION}", "state", "queued")
        redis_client.set(f"{p}req:{GENERATION}", "{}")
        redis_client.zadd(f"{p}queued:interactive", {GENERATION: 1})
        redis_client.hset(f"{p}outbox", GENERATION, "{}")
        redis_client.set(f"{p}seq:interactive", "1")
        assert leaks(redis_client) == []
        assert len(leaks(redis_client, settled=True)) == 4
        redis_client.hset(f"{p}gen:{GENERATION}", "state", "completed")
        assert any("ledger" in leak for leak in leaks(redis_client))
        redis_client.xadd(f"{p}ledger", {"r": json.dumps({"t": "ended", "generation": GENERATION})})
        assert not any(f"gen:{GENERATION}" in leak for leak in leaks(redis_client))


class TestServers:
    def test_valkey_keeps_its_append_only_file_over_a_restart(self) -> None:
        """Same port, same data."""
        with ValkeyServer(appendonly=True, password="p@ss word") as server:
            with server.client() as client:
                client.set("a", "1")
            server.restart()
            with server.client() as client:
                assert client.get("a") == "1"

    def test_a_paused_valkey_accepts_connections_and_answers_nothing(self) -> None:
        """Until it is resumed."""
        with ValkeyServer() as server, server.client(timeout=0.2) as client:
            with server.paused(), pytest.raises(redis.TimeoutError):
                client.ping()
            wait_until(lambda: _answers(client), what="answer")

    @pytest.mark.both_servers
    def test_a_server_can_do_what_tailrace_needs(self, redis_client: redis.Redis) -> None:
        """Sharded channels, scripts that run at maxmemory, small stream nodes."""
        assert redis_client.execute_command("SPUBLISH", "channel", "x") == 0
        assert redis_client.eval("#!lua flags=allow-oom\nreturn 7", 0) == 7
        assert redis_client.config_get("stream-node-max-bytes") == {"stream-node-max-bytes": "512"}

    def test_the_cluster_spreads_its_slots(self, valkey_cluster: ValkeyCluster, cluster_url: str) -> None:
        """Every node holds some of a hundred keys."""
        with redis.RedisCluster.from_url(cluster_url) as client:
            for i in range(100):
                client.set(f"key{i}", i, ex=60)
        for node in valkey_cluster.nodes:
            with node.client() as one:
                assert one.dbsize()

    def test_each_postgres_database_is_new(self, postgres_url: str, postgres_server: PostgresServer) -> None:
        """What one test wrote, another doesn't see."""
        other = postgres_server.create_database()
        for url in (postgres_url, other):
            with postgres_server.connect(url.rpartition("/")[2]) as connection:
                connection.execute("CREATE TABLE t (x int)")
        postgres_server.drop_database(other)

    def test_postgres_asks_for_the_password_it_was_given(self) -> None:
        """Over TCP, as in docker-compose.yml."""
        with PostgresServer(password="s3cret/@") as server:
            with server.connect() as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(f"postgresql://postgres:wrong@127.0.0.1:{server.port}/postgres")


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
