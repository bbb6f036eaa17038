"""Stored completions: reading, listing, changing and deleting them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import select

from schemas.keys import Keys
from schemas.tables import completions, results, usage
from tests.support.api import CHAT, Api, asking, error_of, named, ordered
from tests.support.stack import Stack
from tests.support.valkey import wait_until


def listed(api: Api, **query: Any) -> list[str]:
    """The ids of one page."""
    answer = api.get(CHAT, params=query)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    ids = [item["id"] for item in body["data"]]
    assert body["object"] == "list"
    assert body["first_id"] == (ids[0] if ids else None)
    assert body["last_id"] == (ids[-1] if ids else None)
    return ids


class TestReading:
    def test_a_finished_one_is_a_chat_completion_with_status(self, each_stack: Stack, each_api: Api) -> None:
        """The same from Redis and from the books."""
        api = each_api
        made = api.plain(metadata={"k": "v"}, n=2).json()
        for _ in ("Redis", "the books"):
            stored = api.stored(made["id"])
            assert stored == {**made, "status": "completed", "metadata": {"k": "v"}}
            each_stack.forget(made["id"])

    def test_while_it_runs_there_is_a_status_and_no_choice(self, api: Api, stack: Stack) -> None:
        """Queued, then in progress."""
        with stack.paused("interactive0"):
            completion_id = api.background(fake={"chunks": 100, "interval_ms": 20})
            stored = api.stored(completion_id)
            assert (stored["status"], stored["choices"]) == ("queued", [])
        wait_until(lambda: api.stored(completion_id)["status"] == "in_progress", what="start")
        assert api.stored(completion_id)["choices"] == []
        api.post(f"{CHAT}/{completion_id}/cancel")

    def test_a_failed_one_has_its_error_and_what_there_was(self, each_stack: Stack, each_api: Api) -> None:
        """Status failed, the error beside it, and the text up to it."""
        api = each_api
        error = {"message": "no more", "type": "t", "param": "p", "code": "c"}
        whole = api.seed(fake={"error_event_after": 3, "error": error})
        for _ in ("Redis", "the books"):
            stored = api.stored(whole.id)
            assert stored["status"] == "failed"
            assert stored["error"] == error
            assert stored["choices"][0]["message"]["content"] == ordered(3)
            each_stack.forget(whole.id)

    def test_one_that_failed_before_it_began_can_be_read(self, each_stack: Stack, each_api: Api) -> None:
        """Without a chunk there are no choices."""
        api = each_api
        whole = api.seed(fake={"status": 400, "error": {"message": "bad", "code": "c"}})
        for _ in ("Redis", "the books"):
            stored = api.stored(whole.id)
            assert (stored["status"], stored["choices"]) == ("failed", [])
            assert stored["error"]["message"] == "bad"
            assert api.follow(whole.id).error == "c: bad (provider status 400)"
            each_stack.forget(whole.id)

    def test_what_is_not_stored_is_gone_with_its_log(self, each_stack: Stack, each_api: Api) -> None:
        """``store: false``: readable while its log lives, never listed, no text in SQL; the usage record stays."""
        api, stack = each_api, each_stack
        whole = api.seed(store=False)
        assert api.follow(whole.id).frames == whole.frames
        assert listed(api) == []
        stack.forget(whole.id)
        assert api.get(f"{CHAT}/{whole.id}").status_code == 404
        assert api.get(f"{CHAT}/{whole.id}/stream").status_code == 404
        (row,) = stack.settled(whole.id)
        assert row.usage is not None
        assert stack.books.stored_log(whole.id) is None

    def test_its_log_stays_in_redis_for_an_hour(self, api: Api, stack: Stack) -> None:
        """Once it is settled, and not before."""
        completion_id = api.seed().id
        stack.settled(completion_id)
        keys = Keys(0)
        for name in (keys.gen(completion_id), keys.log(completion_id)):
            wait_until(lambda n=name: int(stack.redis.pttl(n)) > 0, what="TTL")
            assert 3_500_000 < int(stack.redis.pttl(name)) <= 3_600_000

    @pytest.mark.parametrize(
        "id", ["chatcmpl-" + "0" * 32, "nonsense", "chatcmpl-", "%00", "..%2f..", "ü", "x" * 4000]
    )
    def test_an_unknown_id_is_404_everywhere(self, api: Api, id: str) -> None:
        """Whatever it looks like, and whatever is to be done with it."""
        url = f"{CHAT}/{id}"
        for answer in (
            api.get(url),
            api.delete(url),
            api.post(url, json={"metadata": {}}),
            api.post(f"{url}/cancel"),
            api.post(f"{url}/token"),
            api.get(f"{url}/stream"),
        ):
            assert answer.status_code == 404
            error_of(answer)

    def test_head_is_get_without_a_body(self, api: Api) -> None:
        """For whoever only wants to know whether it is there; a stream doesn't start."""
        completion_id = api.seed().id
        for url in (f"{CHAT}/{completion_id}", CHAT, f"{CHAT}/{completion_id}/stream"):
            answer = api.head(url)
            assert answer.status_code == 200
            assert answer.content == b""


class TestListing:
    def test_pages_follow_each_other_in_both_orders(self, each_stack: Stack, each_api: Api) -> None:
        """``after`` and ``limit``, ``has_more`` until the last page, oldest first where nothing is said."""
        api = each_api
        ids = [api.plain().json()["id"] for _ in range(5)]
        each_stack.settled(*ids)
        assert listed(api) == ids
        assert listed(api, order="asc") == ids
        assert listed(api, order="desc") == ids[::-1]
        for order, expected in (("asc", ids), ("desc", ids[::-1])):
            found: list[str] = []
            after: dict[str, str] = {}
            while True:
                body = api.get(CHAT, params={"limit": "2", "order": order, **after}).json()
                found += [item["id"] for item in body["data"]]
                if not body["has_more"]:
                    break
                after = {"after": body["last_id"]}
            assert found == expected
        assert listed(api, after=ids[-1]) == []

    def test_items_are_whole_completions(self, each_stack: Stack, each_api: Api) -> None:
        """As retrieving each of them would show it."""
        api = each_api
        ids = [api.plain().json()["id"], api.seed(fake={"status": 500}).id]
        each_stack.settled(*ids)
        data = api.get(CHAT).json()["data"]
        assert data == [api.stored(completion_id) for completion_id in ids]

    def test_filters_narrow_it(self, each_stack: Stack, each_api: Api) -> None:
        """By model as asked, by metadata (all pairs), by status; and by several at once."""
        api = each_api
        plain = api.plain().json()["id"]
        other = api.plain(model="fake:fake-b", metadata={"a": "1", "b'\"]": "ü"}).json()["id"]
        failed = api.seed(metadata={"a": "1"}, fake={"status": 500}).id
        each_stack.settled(plain, other, failed)
        assert listed(api, model="fake:fake-b") == [other]
        assert listed(api, model="fake") == [plain, failed]
        assert listed(api, **{"metadata[a]": "1"}) == [other, failed]
        assert listed(api, **{"metadata[a]": "1", "metadata[b'\"]]": "ü"}) == [other]
        assert listed(api, **{"metadata[a]": "2"}) == []
        assert listed(api, status="failed") == [failed]
        assert listed(api, status="completed") == [plain, other]
        assert listed(api, status="completed", model="fake", order="desc") == [plain]

    def test_running_ones_are_listed_as_what_they_are(self, each_stack: Stack, each_api: Api) -> None:
        """The books learn of an end late; the list doesn't."""
        api, stack = each_api, each_stack
        running = api.background(fake={"chunks": 300, "interval_ms": 20})
        wait_until(lambda: api.stored(running)["status"] == "in_progress", what="start")
        with stack.paused("interactive0"):
            queued = api.background()
            wait_until(lambda: len(listed(api)) == 2, what="both in the books")
            assert listed(api, status="in_progress") == [running]
            assert listed(api, status="queued") == [queued]
            assert listed(api, status="completed") == []
        api.post(f"{CHAT}/{running}/cancel")
        stack.settled(running, queued)
        assert listed(api, status="cancelled") == [running]
        assert listed(api, status="completed") == [queued]

    @pytest.mark.parametrize(
        ("query", "param"),
        [
            ("limit=0", "limit"),
            ("limit=101", "limit"),
            ("limit=ten", "limit"),
            ("limit=", "limit"),
            ("limit=99999999999999999999999", "limit"),
            ("order=up", "order"),
            ("status=done", "status"),
            ("after=chatcmpl-" + "0" * 32, "after"),
            ("after=nonsense", "after"),
            ("after=%00", "after"),
            ("after=", "after"),
            ("modle=fake", "modle"),
            ("metadata=x", "metadata"),
        ],
    )
    def test_a_bad_query_is_refused_and_named(self, each_api: Api, query: str, param: str) -> None:
        """400 with the parameter."""
        answer = each_api.get(f"{CHAT}?{query}")
        assert answer.status_code == 400
        assert error_of(answer)["param"] == param

    @pytest.mark.parametrize(
        "query", ["model=%00", "metadata[%00]=x", "metadata[a]=%00", "model=%ff", "model="]
    )
    def test_an_odd_filter_finds_nothing(self, each_api: Api, query: str) -> None:
        """Text that no completion can have."""
        each_api.plain()
        assert listed(each_api) is not None
        answer = each_api.get(f"{CHAT}?{query}")
        assert answer.status_code == 200
        assert answer.json()["data"] == []


class TestMetadata:
    def test_it_is_replaced(self, each_stack: Stack, each_api: Api) -> None:
        """In Redis and in the books at once, and the filters see it."""
        api = each_api
        completion_id = api.plain(metadata={"a": "1", "b": "2"}).json()["id"]
        answer = api.post(f"{CHAT}/{completion_id}", json={"metadata": {"c": "3"}})
        assert answer.status_code == 200
        assert answer.json()["metadata"] == {"c": "3"}
        assert answer.json()["choices"]
        for _ in ("Redis", "the books"):
            assert api.stored(completion_id)["metadata"] == {"c": "3"}
            assert listed(api, **{"metadata[c]": "3"}) == [completion_id]
            assert listed(api, **{"metadata[a]": "1"}) == []
            each_stack.forget(completion_id)
        assert api.post(f"{CHAT}/{completion_id}", json={"metadata": None}).json()["metadata"] is None
        assert api.stored(completion_id)["metadata"] is None

    def test_it_can_be_changed_while_the_completion_runs(self, each_stack: Stack, each_api: Api) -> None:
        """And settling doesn't bring the old one back."""
        api = each_api
        with api.events(asking(metadata={"a": "1"}, fake={"chunks": 20, "interval_ms": 30})) as stream:
            stream.next(2)
            answer = api.post(f"{CHAT}/{stream.id}", json={"metadata": {"b": "2"}})
            assert answer.json()["status"] == "in_progress"
            stream.rest()
        assert api.stored(stream.id)["metadata"] == {"b": "2"}
        each_stack.forget(stream.id)
        assert api.stored(stream.id)["metadata"] == {"b": "2"}

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"metadata": {"a": 1}}, "metadata.a"),
            ({"metadata": {"a" * 65: "x"}}, "metadata"),
            ({"metadata": {"a": "x" * 513}}, "metadata.a"),
            ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
            ({"metadata": {"a": "\u0000"}}, "metadata.a"),
            ({"metadata": []}, "metadata"),
            ({"metadata": "x"}, "metadata"),
            ({}, "metadata"),
            ({"metadata": {}, "model": "x"}, "model"),
            ([], "metadata"),
            (None, "metadata"),
        ],
    )
    def test_what_is_no_metadata_is_refused(self, api: Api, body: Any, param: str) -> None:
        """400 that names the field, and nothing is changed."""
        completion_id = api.plain(metadata={"a": "1"}).json()["id"]
        answer = api.post(f"{CHAT}/{completion_id}", content=json.dumps(body))
        assert answer.status_code == 400
        assert error_of(answer)["param"] == param
        assert api.stored(completion_id)["metadata"] == {"a": "1"}

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"\xff", b'{"metadata": {"a": "\\ud800"}}', b"[" * 100_000, b'{"metadata": NaN}']
    )
    def test_what_is_no_json_is_refused(self, api: Api, body: bytes) -> None:
        """400, however deep it is nested."""
        completion_id = api.plain().json()["id"]
        answer = api.post(f"{CHAT}/{completion_id}", content=body)
        assert answer.status_code == 400
        assert error_of(answer)["code"] == "invalid_json"


class TestDeleting:
    @pytest.mark.parametrize("forgotten", [False, True])
    def test_the_text_goes_and_the_usage_stays(
        self, each_stack: Stack, each_api: Api, forgotten: bool
    ) -> None:
        """Nothing of the answer or the question is left in SQL or Redis."""
        api, stack = each_api, each_stack
        whole = api.seed(
            "the secret question", metadata={"secret": "label"}, fake={"text": "the secret answer"}
        )
        if forgotten:
            stack.forget(whole.id)
        answer = api.delete(f"{CHAT}/{whole.id}")
        assert answer.status_code == 200
        assert answer.json() == {"id": whole.id, "object": "chat.completion.deleted", "deleted": True}
        with stack.engine.connect() as connection:
            assert not connection.execute(select(results).where(results.c.generation_id == whole.id)).all()
            row = connection.execute(select(completions).where(completions.c.id == whole.id)).one()
            assert "secret" not in str(row)
            kept = connection.execute(select(usage).where(usage.c.completion_id == whole.id)).mappings().one()
        assert kept["completion_tokens"] == 3
        assert kept["status"] == "completed"
        keys = Keys(0)
        assert not stack.redis.exists(keys.gen(whole.id), keys.log(whole.id), keys.req(whole.id))

    @pytest.mark.parametrize("forgotten", [False, True])
    def test_it_does_not_exist_any_more(self, each_stack: Stack, each_api: Api, forgotten: bool) -> None:
        """404 for every way to it, and no place in the list."""
        api = each_api
        completion_id = api.seed().id
        if forgotten:
            each_stack.forget(completion_id)
        assert api.delete(f"{CHAT}/{completion_id}").status_code == 200
        url = f"{CHAT}/{completion_id}"
        for answer in (
            api.get(url),
            api.delete(url),
            api.post(url, json={"metadata": {}}),
            api.post(f"{url}/cancel"),
            api.post(f"{url}/token"),
            api.get(f"{url}/stream"),
        ):
            assert answer.status_code == 404
        assert listed(api) == []

    def test_a_running_one_must_be_cancelled_first(self, api: Api) -> None:
        """409 that says how, and it runs on."""
        with api.events(asking(fake={"chunks": 50, "interval_ms": 20})) as stream:
            stream.next(2)
            answer = api.delete(f"{CHAT}/{stream.id}")
            assert answer.status_code == 409
            assert "/cancel" in error_of(answer)["message"]
            assert api.post(f"{CHAT}/{stream.id}/cancel").json()["status"] == "cancelled"
            assert api.delete(f"{CHAT}/{stream.id}").status_code == 200

    def test_a_failed_one_can_be_deleted(self, each_api: Api) -> None:
        """Whether it had text or not."""
        for order in ({"status": 500}, {"error_event_after": 2}):
            completion_id = each_api.seed(fake=order).id
            assert each_api.delete(f"{CHAT}/{completion_id}").status_code == 200

    def test_one_that_is_not_stored_can_be_deleted(self, each_api: Api) -> None:
        """Its log need not wait for its time."""
        completion_id = each_api.seed(store=False).id
        assert each_api.delete(f"{CHAT}/{completion_id}").status_code == 200
        assert each_api.get(f"{CHAT}/{completion_id}").status_code == 404

    def test_end_users_delete_their_own(self, api: Api) -> None:
        """Another user's is not there."""
        completion_id = api.seed(headers=named("ann")).id
        url = f"{CHAT}/{completion_id}"
        assert api.delete(url, headers={"X-On-Behalf-Of": "bob"}).status_code == 404
        assert api.delete(url, headers={"X-On-Behalf-Of": "ann"}).status_code == 200
