"""A provider that stops answering is left alone by all workers, and asked again by itself."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from schemas.keys import Keys
from tests.support.api import Api, error_of
from tests.support.backend import Backend
from tests.support.stack import AGAIN, Stack
from tests.support.valkey import wait_until

pytestmark = pytest.mark.once

DOWN = {"status": 503}
#: Longer than any test.
FOR_EVER = 3600
PATIENT = {"tries": 1, "total": 300}


@pytest.fixture(scope="module")
def backends() -> Iterator[tuple[Backend, Backend]]:
    with Backend() as first, Backend() as second:
        yield first, second


@pytest.fixture(scope="module")
def stack(backends: tuple[Backend, Backend]) -> Iterator[Stack]:
    """Two workers; the aliases ``closed-for-ever`` and ``coming-back``, of which the first provider breaks."""
    first, second = backends

    def provider(backend: Backend, failures: int, pause: float, **more: Any) -> dict[str, Any]:
        return {"base_url": backend.url, "circuit": {"failures": failures, "pause": pause}, **more}

    providers = {
        "shut": provider(first, 3, FOR_EVER, retry=AGAIN),
        "back": provider(first, 3, 0.5, retry=AGAIN),
        "alone": provider(first, 2, 1, retry=PATIENT),
        "hasty": provider(first, 2, FOR_EVER, retry={"tries": 1, "total": 5}),
        "second": provider(second, 0, 1),
    }
    aliases = {"closed-for-ever": ["shut:fake", "second:fake"], "coming-back": ["back:fake", "second:fake"]}
    with Stack(interactive=2, providers=providers, aliases=aliases) as stack:
        yield stack
        stack.check_balanced()


@pytest.fixture
def api(stack: Stack, backends: tuple[Backend, Backend]) -> Iterator[Api]:
    for backend in backends:
        backend.reset()
    for name in ("shut", "back", "alone", "hasty"):
        stack.redis.delete(Keys(0).circuit(name))
    stack.redis.execute_command("SPUBLISH", Keys(0).control, "circuits")
    with stack.api() as api:
        yield api


@pytest.fixture
def first(backends: tuple[Backend, Backend]) -> Backend:
    return backends[0]


def who(api: Api, model: str) -> str:
    answer = api.plain(model=model)
    assert answer.status_code == 200, answer.text
    return answer.json()["resolved_provider"]


def is_open(stack: Stack, provider: str) -> bool:
    return bool(stack.redis.hexists(Keys(0).circuit(provider), "until"))


class TestOpen:
    def test_a_provider_that_fails_is_left_alone(self, stack: Stack, api: Api, first: Backend) -> None:
        """By those that come after, whichever worker has them."""
        first.script(*[DOWN] * 100)
        assert {who(api, "closed-for-ever") for _ in range(3)} == {"second"}
        assert is_open(stack, "shut")
        assert len(first.completions) == 3
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: who(api, "closed-for-ever"), range(60)))
        assert set(answers) == {"second"}
        # The other worker hears of it a moment later than the answer is out.
        assert len(first.completions) <= 3 + 20

    def test_a_worker_that_starts_later_knows(self, stack: Stack, api: Api, first: Backend) -> None:
        """It alone takes what comes now."""
        first.script(*[DOWN] * 100)
        while not is_open(stack, "shut"):
            assert who(api, "closed-for-ever") == "second"
        asked = len(first.completions)
        others = [stack.parts[name] for name in ("interactive0", "interactive1")]
        with stack.worker("later", "interactive", 8):
            for part in others:
                part.end(signal.SIGTERM)
            try:
                assert {who(api, "closed-for-ever") for _ in range(5)} == {"second"}
            finally:
                for part in others:
                    part.start(stack.folder)
                stack._ready(4)
        assert len(first.completions) == asked

    def test_failures_of_the_request_open_nothing(self, stack: Stack, api: Api, first: Backend) -> None:
        """Nor does a provider that is busy."""
        first.script(*[{"status": status} for status in (400, 404, 422, 400)])
        for _ in range(4):
            assert api.plain(model="shut:fake").status_code in (400, 404, 422)
        first.script(*[{"status": 429}] * 4)
        assert who(api, "closed-for-ever") == "second"
        assert not stack.redis.exists(Keys(0).circuit("shut"))

    def test_an_answer_starts_the_count_again(self, stack: Stack, api: Api, first: Backend) -> None:
        """Whichever worker has it."""
        for _ in range(4):
            first.script(DOWN, DOWN)
            assert {who(api, "closed-for-ever"), who(api, "closed-for-ever")} == {"second"}

            def answered() -> bool:
                return who(api, "closed-for-ever") == "shut" and not stack.redis.exists(
                    Keys(0).circuit("shut")
                )

            wait_until(answered, what="count that is forgotten")
        assert not is_open(stack, "shut")


class TestRecovery:
    def test_few_calls_go_through(self, stack: Stack, api: Api, first: Backend) -> None:
        """One a pause, whoever asks; all are answered by the other provider meanwhile."""
        first.script(*[DOWN] * 1000)
        while not is_open(stack, "back"):
            assert who(api, "coming-back") == "second"
        asked, since = len(first.completions), time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            while time.monotonic() - since < 4:
                assert set(pool.map(lambda _: who(api, "coming-back"), range(16))) == {"second"}
        probes = len(first.completions) - asked
        assert 1 <= probes <= (time.monotonic() - since) / 0.5 + 1 + 8  # and what was on its way

    def test_it_is_asked_again_by_itself(self, stack: Stack, api: Api, first: Backend) -> None:
        first.script(*[DOWN] * 1000)
        while not is_open(stack, "back"):
            assert who(api, "coming-back") == "second"
        first.reset()
        wait_until(lambda: who(api, "coming-back") == "back", what="recovery")
        wait_until(lambda: not stack.redis.exists(Keys(0).circuit("back")), what="closed circuit")
        assert {who(api, "coming-back") for _ in range(10)} == {"back"}

    def stalled_probe(self, stack: Stack, api: Api, first: Backend) -> str:
        """The completion whose call is the probe, and gets no answer."""
        first.script(*[DOWN] * 1000)
        while not is_open(stack, "back"):
            assert who(api, "coming-back") == "second"
        first.reset()
        first.script({"first_delay_ms": 120_000})
        asked: list[str] = []

        def probe() -> bool:
            asked.append(api.background(model="coming-back"))
            time.sleep(0.2)
            return len(first.completions) > 0

        wait_until(probe, what="probe")
        assert who(api, "coming-back") == "second"
        ended = {completion_id for completion_id in asked[:-1] if stack.settled(completion_id)}
        (probing,) = set(asked) - ended
        return probing

    def test_a_probe_of_a_worker_that_dies_is_another_s(self, stack: Stack, api: Api, first: Backend) -> None:
        probing = self.stalled_probe(stack, api, first)
        victim = stack.worker_of(probing)
        victim.end(signal.SIGKILL)
        victim.start(stack.folder)
        wait_until(lambda: who(api, "coming-back") == "back", what="recovery")
        stack.settled(probing)

    def test_a_probe_that_is_cancelled_is_given_back(self, stack: Stack, api: Api, first: Backend) -> None:
        probing = self.stalled_probe(stack, api, first)
        assert api.post(f"/v1/chat/completions/{probing}/cancel").status_code == 200
        stack.settled(probing)
        wait_until(lambda: who(api, "coming-back") == "back", what="recovery")


class TestWithoutAnother:
    def test_work_waits_for_its_provider(self, stack: Stack, api: Api, first: Backend) -> None:
        """It is parked, not failed, and asked as soon as a probe was answered."""
        with first.down():
            for _ in range(2):
                assert api.plain(model="alone:fake").status_code == 502
            assert is_open(stack, "alone")
            waiting = [api.background(model="alone:fake") for _ in range(5)]
            for completion_id in waiting:
                wait_until(lambda c=completion_id: stack.state(c)["state"] == "parked", what="parked")
        assert [row.status for row in stack.settled(*waiting)] == ["completed"] * 5
        assert [stack.attempts(id)[-1][1] for id in waiting] == ["completed"] * 5
        wait_until(lambda: not stack.redis.exists(Keys(0).circuit("alone")), what="closed circuit")

    @pytest.mark.parametrize("within", ["its own time", "the time for all tries"])
    def test_not_for_ever(self, stack: Stack, api: Api, first: Backend, within: str) -> None:
        """The error says why, at once where nothing can come of waiting."""
        first.script(*[DOWN] * 10)
        more: dict[str, Any] = {"timeout": 20} if within == "its own time" else {}
        provider = "shut" if more else "hasty"
        model = f"{provider}:fake"
        while not is_open(stack, provider):
            assert api.plain(model=model).status_code == 502
        asked, answer = 0, httpx.Response(502)
        for _ in range(4):  # the other worker may be just about to hear of it
            asked = len(first.completions)
            answer = api.plain(model=model, **more)
            if error_of(answer)["code"] == "provider_circuit_open":
                break
        assert answer.status_code == 502
        error = error_of(answer)
        assert error["code"] == "provider_circuit_open"
        assert "calls in a row were not answered" in error["message"]
        assert len(first.completions) == asked
        (row,) = stack.settled(answer.headers["x-completion-id"])
        assert row.status == "failed"
