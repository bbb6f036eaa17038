"""Equal requests: one answer from the cache, one generation for all who ask at once, and ends of their own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from schemas.keys import Keys
from tests.support.api import CHAT, SEED, Api, asking, error_of, ordered
from tests.support.stack import Stack
from tests.support.valkey import wait_until

DETERMINISTIC: dict[str, Any] = {"temperature": 0}
#: An answer that takes a while.
SLOW: dict[str, Any] = {"chunks": 60, "interval_ms": 20}


def asked(api: Api) -> int:
    return len(api.provider_requests(api.tenant))


def test_a_result_answers_the_next_equal_request(each_api: Api, each_stack: Stack) -> None:
    """On every endpoint: the same chunks, under an id of its own, and nobody asks the provider."""
    api = each_api
    first = api.seed(api.tenant, **DETERMINISTIC)
    assert first.headers["x-cache"] == "miss"
    assert "age" not in first.headers
    again = api.seed(api.tenant, **DETERMINISTIC)
    assert again.headers["x-cache"] == "hit"
    assert int(again.headers["age"]) >= 0
    assert again.id != first.id
    assert again.text == first.text
    assert list(again.chunks) == list(first.chunks)
    assert {chunk["id"] for chunk in again.chunks.values()} == {again.id}
    streamed = api.openai(api.tenant, **DETERMINISTIC)
    plain = api.plain(api.tenant, **DETERMINISTIC)
    background = api.background(api.tenant, **DETERMINISTIC)
    assert streamed.headers["x-cache"] == plain.headers["x-cache"] == "hit"
    assert plain.json()["choices"][0]["message"]["content"] == ordered(10)
    assert api.stored(background)["choices"] == plain.json()["choices"]
    assert asked(api) == 1
    ids = [first.id, again.id, streamed.id, plain.json()["id"], background]
    rows = each_stack.settled(*ids)
    assert [row.cache for row in rows] == ["miss", "hit", "hit", "hit", "hit"]
    assert {row.generation_id for row in rows} == {first.id}
    used = [row.usage for row in rows]
    assert all(usage and usage.tokens.completion_tokens == 10 for usage in used)
    assert [usage.cost_nano for usage in used[1:] if usage] == [0] * 4


def test_what_is_no_whole_answer_answers_nobody(api: Api) -> None:
    """Failed, truncated and filtered answers, and those whose end nobody knows: the next request asks afresh."""
    for number, order in enumerate(
        [
            {"finish": "length"},
            {"finish": "content_filter"},
            {"finish": "something_new"},
            {"no_finish": True},
            {"status": 400, "error": {"message": "no", "code": "bad"}},
        ]
    ):
        for _ in range(2):
            assert api.seed(f"{api.tenant}{number}", fake=order, **DETERMINISTIC).headers["x-cache"] == "miss"
        assert len(api.provider_requests(f"{api.tenant}{number}")) == 2


@pytest.mark.parametrize(
    ("params", "headers", "outcomes"),
    [
        ({}, {}, ["bypass", "bypass"]),
        ({"temperature": 0.7}, {}, ["bypass", "bypass"]),
        ({"temperature": 0.7}, {"x-sample": "1"}, ["miss", "hit"]),
        ({"temperature": 0}, {"cache-control": "no-cache"}, ["miss", "miss"]),
        ({"temperature": 0}, {"cache-control": "no-store"}, ["bypass", "bypass"]),
        ({"temperature": 0, "store": False}, {}, ["bypass", "bypass"]),
        ({"temperature": 1}, {"cache-control": "max-age=600"}, ["miss", "hit"]),
        ({"temperature": 0}, {"cache-control": "max-age=0"}, ["miss", "miss"]),
        ({"temperature": 0}, {"cache-control": "stale-if-error=3"}, ["miss", "hit"]),
    ],
)
def test_who_uses_the_cache(
    api: Api, params: dict[str, Any], headers: dict[str, str], outcomes: list[str]
) -> None:
    assert [api.seed(api.tenant, headers=headers, **params).headers["x-cache"] for _ in outcomes] == outcomes
    assert asked(api) == 2 - outcomes.count("hit")


def test_no_cache_replaces_what_is_there(api: Api) -> None:
    """The next one gets the newer answer."""
    first = api.seed(api.tenant, fake={"sampled": True}, fake_id=api.tenant, **DETERMINISTIC)
    fresh = api.seed(
        api.tenant,
        fake={"sampled": True},
        fake_id=api.tenant,
        headers={"cache-control": "no-cache"},
        **DETERMINISTIC,
    )
    third = api.seed(api.tenant, fake={"sampled": True}, fake_id=api.tenant, **DETERMINISTIC)
    assert first.text != fresh.text == third.text


def test_samples_have_places_of_their_own(api: Api) -> None:
    order = {"fake": {"sampled": True}, "fake_id": api.tenant}
    texts = [api.seed(api.tenant, headers={"x-sample": str(n)}, **order).text for n in (0, 1, 0, 1, 2)]
    assert texts[:2] == texts[2:4]
    assert len(set(texts)) == 3


@pytest.mark.parametrize("header", ["only-if-cached", "only-if-cached, no-cache", "only-if-cached, no-store"])
def test_only_if_cached(api: Api, header: str) -> None:
    """A result, or 504 without any work."""
    headers = {"cache-control": header}
    answer = api.post(SEED, json=asking(api.tenant, **DETERMINISTIC), headers=headers)
    assert answer.status_code == 504
    assert "cached" in error_of(answer)["message"]
    assert asked(api) == 0
    api.seed(api.tenant, **DETERMINISTIC)
    answer = api.post(SEED, json=asking(api.tenant, **DETERMINISTIC), headers=headers)
    assert answer.status_code == (200 if header == "only-if-cached" else 504)
    assert asked(api) == 1


def test_nothing_crosses_tenants(stack: Stack) -> None:
    with stack.api() as one, stack.api() as other:
        for api in (one, other):
            assert api.seed(one.tenant, **DETERMINISTIC).headers["x-cache"] == "miss"


def test_a_hit_is_resumed_like_any_other(api: Api) -> None:
    """By its id, by the request, at its own URL; from Redis, and from SQL when Redis has forgotten."""
    first = api.seed(api.tenant, **DETERMINISTIC)
    hit = api.seed(api.tenant, **DETERMINISTIC)
    for headers in (
        {"x-last-chunk-index": "4", "x-completion-id": hit.id},
        {"x-last-chunk-index": "4"},
    ):
        rest = api.seed(api.tenant, headers=headers, **DETERMINISTIC)
        assert list(rest.chunks) == list(first.chunks)[5:]
        assert rest.id == hit.id
    assert list(api.follow(hit.id, 7).chunks) == list(first.chunks)[8:]
    assert api.stored(hit.id)["id"] == hit.id


def test_from_the_books_when_redis_has_forgotten(api: Api, stack: Stack) -> None:
    """The hot copy is put there again."""
    first = api.seed(api.tenant, **DETERMINISTIC)
    early = api.seed(api.tenant, **DETERMINISTIC)
    stack.settled(first.id, early.id)
    stack.forget(first.id, early.id)
    stack.forget_hot()
    late = api.seed(api.tenant, **DETERMINISTIC)
    assert late.headers["x-cache"] == "hit"
    assert late.text == first.text
    assert api.follow(early.id, 3).text == api.follow(first.id, 3).text
    stack.settled(late.id)
    stack.forget(late.id)
    assert api.follow(late.id).text == first.text
    assert asked(api) == 1


def test_equal_requests_at_once_are_one_to_the_provider(api: Api, stack: Stack) -> None:
    """All have the whole stream under ids of their own; one is paid."""

    def ask(number: int) -> Any:
        if number % 3 == 0:
            return api.seed(api.tenant, fake=SLOW, **DETERMINISTIC)
        if number % 3 == 1:
            return api.openai(api.tenant, fake=SLOW, **DETERMINISTIC)
        return api.plain(api.tenant, fake=SLOW, **DETERMINISTIC)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    assert asked(api) == 1
    outcomes = [a.headers["x-cache"] for a in answers]
    assert (outcomes.count("miss"), outcomes.count("join")) == (1, 11)
    for answer in answers:
        text = (
            answer.text if not hasattr(answer, "json") else answer.json()["choices"][0]["message"]["content"]
        )
        assert text == ordered(60)
    rows = stack.settled(*(a.headers["x-completion-id"] for a in answers))
    assert sorted(row.cache for row in rows) == ["join"] * 11 + ["miss"]
    assert len({row.id for row in rows}) == 12
    assert len({row.generation_id for row in rows}) == 1


def test_all_see_the_failure_and_the_next_asks_afresh(api: Api, stack: Stack) -> None:
    order = [{"chunks": 30, "interval_ms": 30, "error_event_after": 20}, {}]

    def ask(_: int) -> Any:
        return api.seed(api.tenant, fake=order, **DETERMINISTIC)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    assert asked(api) == 1
    assert len({answer.error for answer in answers}) == 1
    again = ask(0)
    assert (again.headers["x-cache"], again.last.event) == ("miss", "done")
    rows = stack.settled(*(a.id for a in answers))
    assert {row.status.value for row in rows} == {"failed"}


@pytest.mark.parametrize("who", ["first", "second"])
def test_who_cancels_ends_alone(each_api: Api, each_stack: Stack, who: str) -> None:
    """Its readers stop where it did, and so do those who read it later; the others go on to the end."""
    api, stack = each_api, each_stack
    body = asking(api.tenant, fake=SLOW, **DETERMINISTIC)
    with api.events(body) as first:
        first.next(2)
        with api.events(body) as second:
            assert second.headers["x-cache"] == "join"
            second.next(2)
            leaver, stayer = (first, second) if who == "first" else (second, first)
            answer = api.post(f"{CHAT}/{leaver.id}/cancel").json()
            assert answer["status"] == "cancelled"
            rest = leaver.rest()
            assert rest[-1].event == "error"
            assert rest[-1].data.startswith("cancelled")
            said = [frame for frame in rest if frame.event == "message"]
            tail = said[-1].id if said else 1
            assert tail is not None
            whole = stayer.rest()
            assert whole[-1].event == "done"
    assert 1 <= tail < 58
    (received,) = api.provider_requests(api.tenant)
    api.backend.wait_until(lambda: received.ended is not None)
    assert received.ended == "complete"
    for _ in range(2):
        again = api.follow(leaver.id)
        assert list(again.chunks) == list(range(tail + 1))
        assert again.last.event == "error"
        stored = api.stored(leaver.id)
        assert stored["status"] == "cancelled"
        assert stored["choices"][0]["message"]["content"] == again.text
        assert api.follow(stayer.id).last.event == "done"
        stack.forget(leaver.id, stayer.id)
    rows = stack.settled(leaver.id, stayer.id)
    assert [row.status.value for row in rows] == ["cancelled", "completed"]
    assert rows[0].tail == tail + 1
    usage = [row.usage for row in rows]
    assert all(usage)
    assert api.seed(api.tenant, fake=SLOW, **DETERMINISTIC).headers["x-cache"] == "hit"


@pytest.mark.parametrize("way", ["cancel", "leave"])
def test_the_provider_stops_when_the_last_one_leaves(api: Api, stack: Stack, way: str) -> None:
    body = asking(api.tenant, fake={"chunks": 50, "stall_after": 5}, **DETERMINISTIC)
    leaving = {"x-on-disconnect": "cancel"}
    with api.events(body, headers=leaving) as first:
        first.next(2)
        with api.events(body, headers=leaving) as second:
            second.next(2)
            ids = (first.id, second.id)
            if way == "cancel":
                api.post(f"{CHAT}/{first.id}/cancel")
        (received,) = api.provider_requests(api.tenant)
        if way == "cancel":
            api.backend.wait_until(lambda: received.ended is not None)
        else:
            wait_until(lambda: stack.state(ids[0])["live"] == "1", what="the second one's leaving")
            assert received.ended is None
    api.backend.wait_until(lambda: received.ended is not None)
    assert received.ended == "closed"
    assert {row.status.value for row in stack.settled(*ids)} == {"cancelled"}


@pytest.mark.parametrize("who", ["first", "second", "both", "alone"])
def test_a_deadline_is_that_of_one_completion(api: Api, stack: Stack, who: str) -> None:
    """It ends as failed, and the others go on; the last one's stops the provider."""
    order = (
        {"chunks": 150, "interval_ms": 30} if who in ("first", "second") else {"chunks": 9, "stall_after": 3}
    )
    body = asking(api.tenant, fake=order, **DETERMINISTIC)
    with api.events(body | ({} if who == "second" else {"timeout": 1.5})) as first:
        first.next(2)
        timeout = {} if who == "first" else {"timeout": 1.6}
        others = (
            [] if who == "alone" else [api.background(api.tenant, fake=order, **timeout, **DETERMINISTIC)]
        )
        rest = first.rest()
    ends = {first.id: rest[-1]} | {other: api.follow(other).last for other in others}
    late = {"first": [first.id], "second": others}.get(who, [*ends])
    for completion_id, end in ends.items():
        if completion_id in late:
            assert (end.event, end.data.split(":")[0]) == ("error", "deadline_exceeded")
        else:
            assert end.event == "done"
    (received,) = api.provider_requests(api.tenant)
    api.backend.wait_until(lambda: received.ended is not None)
    assert received.ended == ("complete" if who in ("first", "second") else "closed")
    rows = stack.settled(*ends)
    assert {row.id for row in rows if row.status.value == "failed"} == {*late}
    for completion_id in late:
        assert api.stored(completion_id)["error"]["code"] == "deadline_exceeded"
        stack.forget(completion_id)
        assert api.stored(completion_id)["error"]["code"] == "deadline_exceeded"
    assert not stack.redis.zcard(Keys(0).deadlines)


def test_deleting_one_leaves_the_others_their_text(api: Api, stack: Stack) -> None:
    first = api.seed(api.tenant, **DETERMINISTIC)
    hit = api.seed(api.tenant, **DETERMINISTIC)
    stack.settled(first.id, hit.id)
    assert api.delete(f"{CHAT}/{first.id}").json()["deleted"] is True
    assert api.get(f"{CHAT}/{first.id}").status_code == 404
    assert api.follow(hit.id).text == first.text
    assert api.seed(api.tenant, **DETERMINISTIC).headers["x-cache"] == "hit"


def test_deleting_the_last_one_takes_the_cached_result_along(api: Api, stack: Stack) -> None:
    first = api.seed(api.tenant, **DETERMINISTIC)
    hit = api.seed(api.tenant, **DETERMINISTIC)
    stack.settled(first.id, hit.id)
    for completion_id in (hit.id, first.id):
        assert api.delete(f"{CHAT}/{completion_id}").status_code == 200
        assert api.get(f"{CHAT}/{completion_id}").status_code == 404
    assert api.seed(api.tenant, **DETERMINISTIC).headers["x-cache"] == "miss"
    assert asked(api) == 2


def test_metadata_is_each_ones_own(api: Api) -> None:
    first = api.seed(api.tenant, metadata={"who": "first"}, **DETERMINISTIC)
    hit = api.seed(api.tenant, metadata={"who": "second"}, **DETERMINISTIC)
    api.post(f"{CHAT}/{hit.id}", json={"metadata": {"who": "changed"}})
    assert api.stored(first.id)["metadata"] == {"who": "first"}
    assert api.stored(hit.id)["metadata"] == {"who": "changed"}


def test_an_idempotency_key_names_one_completion(api: Api) -> None:
    """Also where it is a hit or a join."""
    api.seed(api.tenant, **DETERMINISTIC)
    ids = {
        api.seed(api.tenant, headers={"Idempotency-Key": api.tenant}, **DETERMINISTIC).id for _ in range(3)
    }
    assert len(ids) == 1


class TestTheTenantsCache:
    def test_what_is_in_it(self, each_api: Api, each_stack: Stack) -> None:
        api, stack = each_api, each_stack
        assert api.get("/v1/cache").json()["entries"] == 0
        first = api.seed(api.tenant, **DETERMINISTIC)
        ids = [first.id, *(api.seed(api.tenant, **DETERMINISTIC).id for _ in range(2)), api.seed().id]
        stack.settled(*ids)
        found = api.get("/v1/cache").json()
        assert (found["entries"], found["hits"], found["misses"], found["bypasses"]) == (1, 2, 1, 1)
        assert found["bytes"] > 0
        assert found["oldest"] == found["newest"] is not None
        assert found["hit_rate"] == pytest.approx(2 / 3)
        assert found["saved_tokens"] == 2 * (10 + 10)

    def test_purging(self, each_api: Api, each_stack: Stack) -> None:
        """By model and by age; hits of before go on being there."""
        api, stack = each_api, each_stack
        first = api.seed(api.tenant, **DETERMINISTIC)
        hit = api.seed(api.tenant, **DETERMINISTIC)
        stack.settled(first.id, hit.id)
        for query in ("?model=fake-b", "?older_than=3600"):
            assert api.delete(f"/v1/cache{query}").json()["entries"] == 0
        assert api.seed(api.tenant, **DETERMINISTIC).headers["x-cache"] == "hit"
        wait_until(lambda: not stack.redis.exists(stack.flight_of(first.id)), what="the flight's end")
        gone = api.delete("/api/v1/llm/cache?model=fake&older_than=0").json()
        assert (gone["object"], gone["entries"]) == ("cache.purged", 1)
        assert api.seed(api.tenant, **DETERMINISTIC).headers["x-cache"] == "miss"
        assert api.follow(hit.id).text == first.text

    @pytest.mark.parametrize("query", ["?older_than=-1", "?older_than=x", "?oldest=1"])
    def test_what_it_may_be_asked(self, api: Api, query: str) -> None:
        answer = api.delete(f"/v1/cache{query}")
        assert (answer.status_code, bool(error_of(answer)["param"])) == (400, True)

    def test_it_is_nobody_elses(self, api: Api, stack: Stack) -> None:
        first = api.seed(api.tenant, **DETERMINISTIC)
        stack.settled(first.id)
        with stack.api() as other:
            assert other.get("/v1/cache").json()["entries"] == 0
            assert other.delete("/v1/cache").json()["entries"] == 0
        assert api.get("/v1/cache", headers={"X-On-Behalf-Of": "ann"}).status_code == 400
        assert api.seed(api.tenant, **DETERMINISTIC).headers["x-cache"] == "hit"
