"""``tailrace prune --tenant``: nothing of a tenant is left, and nothing of another one is gone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from schemas.keys import Keys
from schemas.records import encode_record
from tests.support.api import CHAT, Api, asking, dump, named
from tests.support.entered import accepted, contents
from tests.support.files import folder_of, open_batch, stored
from tests.support.files import names as names_of_files
from tests.support.stack import Stack
from tests.support.valkey import wait_until
from tests.tailrace.command import complaint, run

pytestmark = pytest.mark.once

#: What nobody else says, as a tenant and in its requests and answers.
NAME, WORD = "acme-erased", "xyzzy"
DETERMINISTIC: dict[str, Any] = {"temperature": 0}
SLOW: dict[str, Any] = {"chunks": 900, "interval_ms": 100}
#: The keys that hold what tenants said or did.
KINDS = frozenset(
    [
        "gen",
        "req",
        "log",
        "ptr",
        "members",
        "fp",
        "idem",
        "hot",
        "flight",
        "keylimit",
        "dead",
        "outbox",
        "deadlines",
        "recovery",
        "parked",
        "lease",
    ]
)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack(providers={"narrow": {"max_concurrency": 1}}) as stack:
        yield stack
        stack.check_balanced()


def settings(stack: Stack) -> dict[str, str]:
    return {
        "REDIS_URL": stack.valkey.url,
        "DATABASE_URL": stack.database_url,
        "FILES": str(folder_of(stack)),
    }


def names(stack: Stack) -> set[str]:
    return {name for name in stack.redis.scan_iter(f"{Keys(0).prefix}*") if name.split(":")[2] in KINDS}


def everything(stack: Stack) -> str:
    """What Redis and the database hold."""
    redis: Any = stack.redis
    read = {
        "string": redis.get,
        "hash": redis.hgetall,
        "list": lambda name: redis.lrange(name, 0, -1),
        "set": redis.smembers,
        "zset": lambda name: redis.zrange(name, 0, -1),
        "stream": redis.xrange,
    }
    held = [(name, read[kind](name)) for name in redis.scan_iter() if (kind := redis.type(name)) in read]
    return repr((held, contents(stack.engine)))


def lives(stack: Stack, api: Api) -> list[str]:
    """A bit of everything; the ids."""
    ann = named("ann")
    first = api.seed(
        WORD, fake={"text": f"{WORD} said"}, headers=ann, metadata={"about": WORD}, **DETERMINISTIC
    )
    hit = api.seed(WORD, fake={"text": f"{WORD} said"}, headers=ann, **DETERMINISTIC)
    assert hit.headers["x-cache"] == "hit"
    keyed = api.seed(WORD, headers={"Idempotency-Key": WORD})
    failed = api.post(CHAT, json=asking(WORD, fake={"status": 400})).headers["x-completion-id"]
    unstored = api.seed(WORD, store=False).id
    deleted = api.plain("gone").json()["id"]
    stack.settled(first.id, hit.id, keyed.id, failed, unstored, deleted)
    assert api.delete(f"{CHAT}/{deleted}").status_code == 200
    running = [api.background(WORD, fake=SLOW, **DETERMINISTIC) for _ in range(2)]
    waiting = [api.background(f"{WORD} {n}", fake=SLOW, model="narrow:fake") for n in range(3)]
    return [first.id, hit.id, keyed.id, failed, unstored, deleted, *running, *waiting]


def test_nothing_is_left(stack: Stack) -> None:
    """Of what has ended, runs, waits and died; whoever has its keys is nobody from then on."""
    with stack.api() as other:
        kept = other.plain("kept", headers={"Idempotency-Key": "kept"}, **DETERMINISTIC).json()
        stack.settled(kept["id"])
        wait_until(lambda: any(":hot:" in name for name in names(stack)), what="the hot copy")
        before, rows = names(stack), contents(stack.engine)
        row, key = stack.keys.create(
            "limited", NAME, limits={"rpm": 100, "queued": 50, "budget_nano": 10**12}
        )
        with Api(stack.url, key, tenant=NAME, backend=stack.backend) as api:
            ids = lives(stack, api)
            kept_files = names_of_files(stack)
            uploaded = [stored(api, WORD.encode(), filename=WORD)["id"] for _ in range(2)]
            ids += [*uploaded, open_batch(stack, api, uploaded[0])]
            elsewhere = {**settings(stack), "FILES": str(stack.folder / "elsewhere")}
            refused = run("prune", "--tenant", NAME, "--yes", settings=elsewhere)
            assert "TAILRACE_FILES" in complaint(refused, 1)
            assert api.get("/v1/files").status_code == 200
            lost = encode_record(accepted("chatcmpl-dead", tenant=NAME))
            stack.redis.xadd(Keys(0).dead, {"r": lost, "error": "refused"})
            held = everything(stack)
            assert all(word in held for word in (NAME, WORD, row.id, *ids))
            done = run("prune", "--tenant", NAME, "--yes", settings=settings(stack))
            assert done.returncode == 0, done.stderr
            completions = len(ids) - 3
            assert done.stdout == (
                f"{completions} completions, 1 batches, 2 files and 1 keys of the tenant '{NAME}' removed\n"
            )
            assert api.plain("hi").status_code == 401
        left = everything(stack)
        assert [word for word in (NAME, WORD, row.id, "chatcmpl-dead", *ids) if word in left] == []
        assert names(stack) - before == set()
        assert names_of_files(stack) == kept_files
        assert contents(stack.engine) == rows
        again = other.plain("kept", headers={"Idempotency-Key": "kept"}, **DETERMINISTIC).json()
        assert again["id"] == kept["id"]
        assert other.plain("kept", **DETERMINISTIC).headers["x-cache"] == "hit"


def test_it_is_asked_first(stack: Stack) -> None:
    with stack.api() as api:
        id = api.plain("stays").json()["id"]
        done = run("prune", "--tenant", api.tenant, settings=settings(stack))
        assert done.returncode != 0
        assert (
            run("prune", "--tenant", api.tenant, "--older-than", "1", settings=settings(stack)).returncode
            == 2
        )
        assert api.stored(id)["id"] == id


def test_a_batch_that_runs_is_stopped(stack: Stack) -> None:
    """Nothing of it is sent or kept afterwards; what was under way is cancelled."""
    tenant = stack.tenant("batches")
    before, files = names(stack), names_of_files(stack)
    with stack.api(tenant) as api:
        rows = [
            {
                "custom_id": f"row-{n}",
                "method": "POST",
                "url": CHAT,
                "body": asking(f"{tenant} {n}", fake={"chunks": 10, "interval_ms": 100}),
            }
            for n in range(400)
        ]
        text = b"".join(dump(row) + b"\n" for row in rows)
        batch = api.post(
            "/v1/batches",
            json={
                "input_file_id": stored(api, text)["id"],
                "endpoint": CHAT,
                "completion_window": "24h",
                "max_concurrency": 20,
            },
        )
        assert batch.status_code == 200, batch.text

        def sent() -> int:
            return sum(tenant in repr(request.body) for request in stack.backend.completions)

        wait_until(lambda: sent() >= 40, 60, "rows at the provider")
        done = run("prune", "--tenant", tenant, "--yes", settings=settings(stack))
        assert done.returncode == 0, done.stderr
        assert "1 batches, 1 files and 1 keys" in done.stdout
        total = sent()
    assert total < 400
    with stack.api() as other:
        file = stored(other, text.replace(tenant.encode(), b"other").split(b"\n")[0] + b"\n")["id"]
        job = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        id = other.post("/v1/batches", json=job).json()["id"]
        wait_until(
            lambda: other.get(f"/v1/batches/{id}").json()["status"] == "completed", 60, "another batch"
        )
        assert run("prune", "--tenant", other.tenant, "--yes", settings=settings(stack)).returncode == 0
    assert sent() == total
    assert tenant not in everything(stack)
    assert names(stack) - before == set()
    assert names_of_files(stack) == files
