"""Who may: API keys, tenants, end users, stream tokens, and pages of other origins."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import httpx
import pytest

from stores.apikeys import make_stream_token
from tests.support.api import CHAT, SEED, Api, anybody, asking, encoded, error_of, named, ordered
from tests.support.stack import ORIGIN, Stack
from tests.support.valkey import wait_until

#: A revoked key works no longer than this, in seconds.
REVOKED_WITHIN = 6.0


def anonymous(api: Api, authorization: str | bytes | None = None) -> httpx.Client:
    headers = {} if authorization is None else {"Authorization": authorization}
    return anybody(str(api.base_url), headers=headers)


class TestKeys:
    @pytest.mark.parametrize(
        ("authorization", "code"),
        [
            (None, "missing_api_key"),
            ("", "invalid_api_key"),
            ("Bearer", "invalid_api_key"),
            ("Bearer x", "invalid_api_key"),
            ("Basic dXNlcjpwYXNz", "invalid_api_key"),
            ("Bearer tr-000000000000-" + "A" * 43, "invalid_api_key"),
            ("Bearer " + "x" * 8000, "invalid_api_key"),
            (b"Bearer \xff\xfe", "invalid_api_key"),
            ("Bearer sk-ü".encode(), "invalid_api_key"),
        ],
    )
    def test_without_a_good_key_nothing_is_answered(
        self, api: Api, authorization: str | bytes | None, code: str
    ) -> None:
        """401 on every endpoint but those of operations, in OpenAI's shape."""
        completion_id = api.seed().id
        with anonymous(api, authorization) as client:
            for method, url in (
                ("POST", SEED),
                ("POST", CHAT),
                ("GET", CHAT),
                ("GET", f"{CHAT}/{completion_id}"),
                ("POST", f"{CHAT}/{completion_id}"),
                ("DELETE", f"{CHAT}/{completion_id}"),
                ("GET", f"{CHAT}/{completion_id}/stream"),
                ("POST", f"{CHAT}/{completion_id}/cancel"),
                ("POST", f"{CHAT}/{completion_id}/token"),
                ("GET", "/v1/models"),
                ("GET", "/v1/models/fake"),
            ):
                answer = client.request(method, url, json=asking() if method == "POST" else None)
                assert answer.status_code == 401, url
                assert error_of(answer)["code"] == code
                assert answer.headers["www-authenticate"] == "Bearer"

    def test_a_key_with_a_wrong_secret_is_refused(self, api: Api) -> None:
        """The public part of a key opens nothing."""
        for forged in (
            api.api_key[:-1] + ("A" if api.api_key[-1] != "A" else "B"),
            api.api_key[:16] + "-" + "A" * 43,
        ):
            with anonymous(api, f"Bearer {forged}") as client:
                assert client.get(CHAT).status_code == 401

    def test_the_scheme_is_spelled_in_any_case(self, api: Api) -> None:
        """As RFC 9110 has it."""
        with anonymous(api, f"bEaReR  {api.api_key}") as client:
            assert client.get(CHAT).status_code == 200

    def test_two_keys_in_one_request_are_none(self, api: Api, stack: Stack) -> None:
        """Nobody has to guess which one counts."""
        with stack.api() as other:
            both = [("Authorization", f"Bearer {api.api_key}"), ("Authorization", f"Bearer {other.api_key}")]
            with anybody(stack.url, headers=both) as client:
                assert client.get(CHAT).status_code == 401

    def test_a_revoked_key_stops_working_within_seconds(self, each_stack: Stack) -> None:
        """Also one that is in use; another key of the tenant is not touched."""
        stack = each_stack
        tenant = stack.tenant()
        key_id, plaintext = stack.key(tenant)
        with (
            Api(stack.url, plaintext, tenant=tenant, backend=stack.backend) as api,
            stack.api(tenant) as other,
        ):
            assert api.plain().status_code == 200
            token = api.post(f"{CHAT}/{api.seed().id}/token").json()["url"]
            assert stack.keys.revoke(key_id)
            wait_until(lambda: api.get(CHAT).status_code == 401, REVOKED_WITHIN, "refusal")
            assert api.plain().status_code == 401
            with anonymous(api) as client:
                assert client.get(token).status_code == 401
            assert other.plain().status_code == 200

    def test_a_new_key_works_at_once(self, stack: Stack) -> None:
        """However many there are."""
        for _ in range(5):
            with stack.api() as api:
                assert api.get(CHAT).status_code == 200


class TestTenants:
    def test_to_others_a_completion_does_not_exist(self, api: Api, stack: Stack) -> None:
        """404, as for an id that nobody has, for whatever is done with it; and it is not listed."""
        with (
            api.events(asking(api.tenant, fake={"chunks": 80, "interval_ms": 20})) as stream,
            stack.api() as other,
        ):
            stream.next(1)
            finished = api.seed("finished").id
            for completion_id in (stream.id, finished):
                url = f"{CHAT}/{completion_id}"
                for answer in (
                    other.get(url),
                    other.delete(url),
                    other.post(url, json={"metadata": {"a": "b"}}),
                    other.post(f"{url}/cancel"),
                    other.post(f"{url}/token"),
                    other.get(f"{url}/stream"),
                    other.post(
                        SEED,
                        json=asking(api.tenant),
                        headers={"x-completion-id": completion_id, "x-last-chunk-index": "0"},
                    ),
                    other.get(CHAT, params={"after": completion_id}),
                ):
                    assert answer.status_code in (404, 400)
                    assert "choices" not in answer.text
            assert other.get(CHAT).json()["data"] == []
            answer = other.post(SEED, json=asking(api.tenant), headers={"x-last-chunk-index": "0"})
            assert answer.status_code == 404
            assert api.stored(stream.id)["status"] == "in_progress"
            api.post(f"{CHAT}/{stream.id}/cancel")

    def test_keys_of_one_tenant_share_its_completions(self, api: Api, stack: Stack) -> None:
        """The tenant owns them, not the key."""
        completion_id = api.seed().id
        stack.settled(completion_id)
        with stack.api(api.tenant) as colleague:
            assert colleague.stored(completion_id)["status"] == "completed"
            assert [c["id"] for c in colleague.get(CHAT).json()["data"]] == [completion_id]


class TestEndUsers:
    @pytest.mark.parametrize("user", ["ann", "zoë@example.org", "水 user", "a,b;c"])
    def test_a_request_for_a_user_sees_that_users_completions(
        self, each_stack: Stack, each_api: Api, user: str
    ) -> None:
        """And the tenant itself sees all."""
        api = each_api
        mine = api.seed(headers=named(user)).id
        others = api.seed(headers=named("bob")).id
        nobodys = api.seed().id
        each_stack.settled(mine, others, nobodys)
        assert api.stored(mine, headers=named(user))["id"] == mine
        for completion_id in (others, nobodys):
            for method, path in (
                ("GET", ""),
                ("DELETE", ""),
                ("GET", "/stream"),
                ("POST", "/cancel"),
                ("POST", "/token"),
            ):
                url = f"{CHAT}/{completion_id}{path}"
                answer = api.request(method, url, headers=encoded(named(user)))
                assert answer.status_code == 404, url
        for completion_id in (mine, others, nobodys):
            assert api.stored(completion_id)["status"] == "completed"
        page = api.get(CHAT, headers=encoded(named(user))).json()
        assert [item["id"] for item in page["data"]] == [mine]

    def test_the_user_is_recorded(self, each_stack: Stack, each_api: Api) -> None:
        """In the completion's row, and as the provider's ``user``."""
        api = each_api
        (row,) = each_stack.settled(api.seed(api.tenant, headers=named("zoë")).id)
        assert row.end_user == "zoë"
        (received,) = api.provider_requests(api.tenant)
        assert received.body["user"] == "zoë"

    @pytest.mark.parametrize("value", [b"", b"x" * 257, "a\u200b".encode(), "a\u2028".encode(), b"\xc2\x85"])
    def test_a_name_that_is_none_is_refused(self, api: Api, value: bytes) -> None:
        """400 that names the header: an empty one must not mean everybody."""
        for method, url in (("POST", SEED), ("GET", CHAT), ("GET", f"{CHAT}/chatcmpl-{'0' * 32}")):
            answer = api.request(method, url, headers=encoded({"X-On-Behalf-Of": value}))
            assert answer.status_code == 400
            assert error_of(answer)["param"] == "x-on-behalf-of"


class TestTokens:
    def test_a_token_opens_one_stream_without_a_key(self, each_api: Api) -> None:
        """Its URL is ready to be given to an EventSource, from any index."""
        api = each_api
        first = api.seed()
        made = api.post(f"{CHAT}/{first.id}/token").json()
        assert made["object"] == "chat.completion.stream_token"
        assert 14 * 60 < made["expires_at"] - time.time() <= 15 * 60
        with anonymous(api) as client:
            answer = client.get(made["url"])
            assert answer.status_code == 200
            assert answer.content.endswith(b"event: done\nid: 13\ndata: null\n\n")
            answer = client.get(made["url"], headers={"Last-Event-ID": "11"})
            assert answer.text.count("event: message") == 1

    def test_it_opens_nothing_else(self, api: Api, stack: Stack) -> None:
        """Not the completion, not another one's stream, not a cancel."""
        first, second = api.seed(), api.seed()
        token = {"token": api.post(f"{CHAT}/{first.id}/token").json()["token"]}
        with anybody(stack.url, params=token) as client:
            for method, url in (
                ("GET", f"{CHAT}/{second.id}/stream"),
                ("GET", f"{CHAT}/{first.id}"),
                ("GET", CHAT),
                ("DELETE", f"{CHAT}/{first.id}"),
                ("POST", f"{CHAT}/{first.id}/cancel"),
                ("POST", f"{CHAT}/{first.id}/token"),
                ("POST", SEED),
            ):
                answer = client.request(method, url)
                assert answer.status_code == 401, url
                error_of(answer)

    def test_an_expired_or_forged_one_is_refused(self, api: Api, stack: Stack) -> None:
        """401, whatever it looks like."""
        first = api.seed()
        (key,) = [key for key in stack.keys.list() if key.tenant == api.tenant]
        good = api.post(f"{CHAT}/{first.id}/token").json()["token"]
        grant, _, signature = good.partition(".")

        def encoded(value: Any) -> str:
            return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

        later = {"c": first.id, "k": key.id, "e": 2**62, "u": None}
        forged = [
            make_stream_token(key, first.id, int(time.time()) - 1),
            f"{grant}.{signature[:-2]}AA",
            f"{encoded(later)}.{signature}",
            f"{encoded({})}.{signature}",
            f"{encoded([])}.{signature}",
            f"{encoded({**later, 'k': 'key_nobody'})}.{signature}",
            grant,
            "",
            ".",
            "ü.ü",
            "\x00",
            "a" * 5000,
            "====.====",
        ]
        with anonymous(api) as client:
            for token in forged:
                answer = client.get(f"{CHAT}/{first.id}/stream", params={"token": token})
                assert answer.status_code == 401, token
                assert error_of(answer)["code"] == "invalid_stream_token"

    def test_a_users_token_stays_the_users(self, api: Api) -> None:
        """Made on behalf of one user for a completion of that user."""
        first = api.seed(headers=named("ann"))
        url = f"{CHAT}/{first.id}/token"
        assert api.post(url, headers={"X-On-Behalf-Of": "bob"}).status_code == 404
        made = api.post(url, headers={"X-On-Behalf-Of": "ann"}).json()
        with anonymous(api) as client:
            assert client.get(made["url"]).status_code == 200

    def test_it_works_while_the_completion_runs(self, api: Api) -> None:
        """A page can follow what a server has asked for."""
        completion_id = api.background(fake={"chunks": 20, "interval_ms": 20})
        made = api.post(f"/api/v1/llm/chat/completions/{completion_id}/token").json()
        assert made["url"].startswith("/api/v1/llm/")
        with anonymous(api) as client:
            answer = client.get(made["url"])
        assert answer.text.count("event: message") == 23


class TestOrigins:
    def test_the_configured_page_may_read_answers(self, api: Api) -> None:
        """Streams and errors too, with the headers that it needs."""
        for answer in (
            api.get(CHAT, headers={"Origin": ORIGIN}),
            api.post(SEED, json=asking(), headers={"Origin": ORIGIN}),
            api.post(SEED, json={}, headers={"Origin": ORIGIN}),
            api.get("/v1/nothing", headers={"Origin": ORIGIN}),
        ):
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            exposed = answer.headers["access-control-expose-headers"].lower()
            assert "x-completion-id" in exposed
            assert "x-request-id" in exposed

    def test_its_preflights_are_answered(self, api: Api) -> None:
        """Without a key, for our methods and headers."""
        preflight = {
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-last-chunk-index,idempotency-key",
        }
        with anonymous(api) as client:
            answer = client.options(SEED, headers=preflight)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "x-last-chunk-index" in answer.headers["access-control-allow-headers"]

    def test_other_pages_may_not(self, api: Api) -> None:
        """What is answered to them, their browser keeps from them."""
        elsewhere = {"Origin": "http://evil.example"}
        assert "access-control-allow-origin" not in api.get(CHAT, headers=elsewhere).headers
        assert "access-control-allow-origin" not in api.post(SEED, json=asking(), headers=elsewhere).headers

    def test_without_the_setting_no_page_may(self, stack_on_postgres: Stack) -> None:
        """The default."""
        with stack_on_postgres.api() as api:
            answer = api.get(CHAT, headers={"Origin": ORIGIN})
            assert answer.status_code == 200
            assert "access-control-allow-origin" not in answer.headers
            assert api.seed().text == ordered()
