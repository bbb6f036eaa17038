"""The pipeline with RabbitMQ for its broker: what runs in it, and what becomes of it when broker or workers go."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from celery import Celery

from producers.message import producing_app
from schemas.settings import Settings
from tests.support.api import SEED, Api, asking, error_of, ordered, parse_frames, text_of
from tests.support.rabbitmq import RabbitServer, RabbitStack
from tests.support.stack import CONCURRENCY
from tests.support.valkey import wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

#: How long gateway and workers may take to find a broker that is back, in seconds: Celery tries ever more rarely.
RECONNECT = 90.0
#: From the death of a worker to the next chunk of what it streamed, with the leases that users have, in seconds.
RECOVERY = 15.0
#: The most that a worker may take to stop, in seconds: 4 for its streams, and some for a busy machine.
STOP = 15.0


@pytest.fixture(scope="module")
def stack(rabbit: RabbitServer) -> Iterator[RabbitStack]:
    with RabbitStack(rabbit) as stack:
        yield stack
        stack.check_balanced()


@contextmanager
def no_interactive_worker(stack: RabbitStack) -> Generator[None]:
    """Tests add their own; afterwards the common one is back."""
    stack.remove("interactive0")
    wait_until(lambda: stack.rabbit.consumers("interactive") == 0, what="queue without a consumer")
    try:
        yield
    finally:
        stack.add_worker("interactive0", "interactive", CONCURRENCY)


def accepts(api: Api) -> bool:
    return api.plain().status_code == 200


class TestWork:
    def test_a_completion(self, api: Api) -> None:
        """On both endpoints, once each."""
        whole = api.seed(api.tenant)
        assert [frame.id for frame in whole.frames] == list(range(len(whole.frames)))
        assert whole.text == ordered()
        assert whole.last.event == "done"
        assert api.openai(api.tenant).text == ordered()
        assert len(api.provider_requests(api.tenant)) == 2

    def test_hundreds_of_streams_at_once(self, api: Api, stack: RabbitStack) -> None:
        """300 answers at the same time in one process, each whole."""
        streams = 300
        results: dict[int, str] = {}
        begin = time.monotonic() + 12

        async def one(client: httpx.AsyncClient, number: int) -> None:
            wait = max(0.0, begin - time.monotonic())
            fake = {"pieces": [f" {number}.{i}" for i in range(10)], "first_delay_ms": wait * 1000}
            response = await client.post(SEED, json=asking(fake={**fake, "interval_ms": 200}))
            frames = [frame for frame in parse_frames([response.content]) if not frame.is_comment]
            assert frames[-1].event == "done"
            results[number] = text_of(frame.data for frame in frames)

        async def run() -> None:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(
                base_url=stack.url, headers=api.headers, timeout=60, limits=limits, verify=False
            ) as client:
                await asyncio.gather(*(one(client, number) for number in range(streams)))

        running = threading.Thread(target=lambda: asyncio.run(run()))
        running.start()
        wait_until(lambda: api.backend.active >= streams, seconds=60, what=f"{streams} streams at once")
        running.join(60)
        assert results == {n: "".join(f" {n}.{i}" for i in range(10)) for n in range(streams)}

    def test_what_is_beyond_a_workers_slots_waits_at_the_broker(self, api: Api, stack: RabbitStack) -> None:
        """A slot that becomes free is filled."""
        with no_interactive_worker(stack), stack.worker("small", "interactive", 2):
            endless = [api.background(fake={"stall_after": 1}) for _ in range(2)]
            wait_until(lambda: all("worker" in stack.state(i) for i in endless), what="claims")
            waiting = [api.background() for _ in range(3)]
            wait_until(lambda: stack.queue_length("interactive") == 3, what="messages that wait")
            assert {stack.state(i)["state"] for i in waiting} == {"queued"}
            api.post(f"/v1/chat/completions/{endless[0]}/cancel")
            stack.settled(*waiting)
            api.post(f"/v1/chat/completions/{endless[1]}/cancel")
            stack.settled(*endless)

    def test_task_events_are_published(self, stack: RabbitStack, api: Api) -> None:
        """What Flower shows."""
        app: Celery = producing_app(Settings(broker_url=stack.rabbit.url))
        seen: dict[str, set[str]] = {}

        def on_event(event: dict[str, Any]) -> None:
            if event["type"].startswith("task-"):
                seen.setdefault(event["uuid"], set()).add(event["type"])

        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": on_event})
            events = receiver.itercapture(timeout=30)
            next(events)  # a worker's heartbeat: it listens
            completion_id = api.seed().id
            while "task-succeeded" not in seen.get(completion_id, ()):
                next(events)
            events.close()
        app.close()
        assert seen[completion_id] == {"task-received", "task-started", "task-succeeded"}

    def test_a_message_is_not_kept_for_as_long_as_its_stream(self, api: Api, stack: RabbitStack) -> None:
        """The broker closes the channel of whoever keeps one for half an hour. Here a worker waits 1 s, not minutes.

        It has one slot; once the first message is acknowledged the broker sends it another."""
        with no_interactive_worker(stack):
            stack.add_worker("impatient", "interactive", 1, app="tests.support.impatient_worker")
            endless = api.background(fake={"stall_after": 1})
            stack.settled(api.background())
            assert stack.state(endless)["state"] == "leased"
            api.post(f"/v1/chat/completions/{endless}/cancel")
            stack.settled(endless)
            stack.remove("impatient")


class TestBrokerAway:
    def test_streams_go_on_without_a_broker(self, api: Api, stack: RabbitStack, rabbit: RabbitServer) -> None:
        """New work is refused meanwhile, what was accepted is done afterwards, and nothing is done twice."""
        order = {"chunks": 100, "interval_ms": 150}
        ids = [api.background(api.tenant, fake=order) for _ in range(20)]
        with api.events(asking(api.tenant, fake=order)) as stream:
            frames = stream.next(3)
            rabbit.stop()
            for _ in range(2):
                answer = api.plain("refused")
                assert answer.status_code == 503
                assert error_of(answer)["code"] == "unavailable"
                assert int(answer.headers["retry-after"]) > 0
            frames += stream.next(3)
            rabbit.start()
            frames += stream.rest()
        assert text_of(frame.data for frame in frames) == ordered(100)
        assert frames[-1].event == "done"
        for completion_id in ids:
            assert api.follow(completion_id).text == ordered(100)
        wait_until(lambda: accepts(api), RECONNECT, "new work")
        assert len(api.provider_requests(api.tenant)) == 1 + len(ids)
        assert not api.provider_requests("refused")
        assert not stack.readers()

    def test_accepted_work_survives_the_broker(
        self, api: Api, stack: RabbitStack, rabbit: RabbitServer
    ) -> None:
        """What waits in the queue is on disk: also a kill of the broker loses none of it."""
        with no_interactive_worker(stack):
            ids = [api.background(api.tenant) for _ in range(20)]
            rabbit.kill()
            rabbit.start()
            ids += [api.background(api.tenant) for _ in range(20)]
        assert {row.status for row in stack.settled(*ids)} == {"completed"}
        assert len(api.provider_requests(api.tenant)) == len(ids)

    def test_a_broker_that_says_nothing(self, api: Api, stack: RabbitStack, rabbit: RabbitServer) -> None:
        """Its connections are open and it answers nothing: 503 within seconds, not a hang, for many at once."""
        answers: list[httpx.Response] = []

        def ask() -> None:
            with Api(stack.url, api.api_key, tenant=api.tenant, backend=api.backend) as other:
                answers.append(other.plain(api.tenant))

        askers = [threading.Thread(target=ask) for _ in range(20)]
        with rabbit.paused():
            for asker in askers:
                asker.start()
            for asker in askers:
                asker.join()
        assert [answer.status_code for answer in answers] == [503] * len(askers)
        wait_until(lambda: accepts(api), RECONNECT, "new work")
        assert not api.provider_requests(api.tenant)


class TestWorkersThatGo:
    def test_a_message_that_a_dead_worker_took_goes_to_another(self, api: Api, stack: RabbitStack) -> None:
        """It had not begun: nobody waits for a lease to expire."""
        with no_interactive_worker(stack):
            victim = stack.add_worker("victim", "interactive", 4)
            os.kill(victim.pid, signal.SIGSTOP)
            ids = [api.background(api.tenant) for _ in range(4)]
            wait_until(lambda: stack.queue_length("interactive") == 0, what="messages that are taken")
            stack.remove("victim", signal.SIGKILL)
            stack.add_worker("heir", "interactive", 4)
            assert {row.status for row in stack.settled(*ids)} == {"completed"}
            stack.remove("heir")
        assert len(api.provider_requests(api.tenant)) == 4

    def test_a_worker_that_stops_hands_its_messages_back(self, stack: RabbitStack) -> None:
        """Its streams get an end, and what it has not begun is another's."""
        accepted: list[str] = []
        enough = threading.Event()

        def submit() -> None:
            with stack.api() as api:
                while not enough.is_set():
                    accepted.append(api.background())

        with no_interactive_worker(stack):
            for name in ("first", "second"):
                worker = stack.add_worker(name, "interactive", 64)
                before = len(accepted)
                enough.clear()
                flood = threading.Thread(target=submit)
                flood.start()
                try:
                    wait_until(lambda n=before: len(accepted) > n + 60, what="flood")
                    assert worker.process
                    worker.process.send_signal(signal.SIGTERM)
                    assert worker.process.wait(STOP) == 0
                finally:
                    enough.set()
                    flood.join()
                assert "Traceback" not in worker.log.read_text()
                stack.parts.pop(name)
        assert {row.status for row in stack.settled(*accepted)} == {"completed"}

    def test_recovery_within_15_s_of_a_kill_with_running_completions(self) -> None:
        """Readers see all chunks and the end; beside the lost attempt there is one more, whatever is redelivered."""
        users = {"LEASE_SECONDS": "", "RENEW_SECONDS": ""}
        with (
            RabbitServer() as rabbit,
            RabbitStack(rabbit, settings=users, interactive=2) as stack,
            stack.api() as api,
        ):
            order = {"chunks": 400, "interval_ms": 50}
            ids = [api.background(api.tenant, temperature=0, seed=n, fake=order) for n in range(12)]
            wait_until(lambda: all(int(stack.state(i).get("next", 0)) > 0 for i in ids), what="chunks")
            victim = stack.worker_of(ids[0])
            lost = [i for i in ids if stack.worker_of(i) is victim]
            victim.end(signal.SIGKILL)
            killed = time.monotonic()
            published = {i: int(stack.state(i)["next"]) for i in lost}
            wait_until(
                lambda: all(int(stack.state(i)["next"]) > published[i] for i in lost),
                RECOVERY + 30,
                "chunks of the next attempts",
            )
            assert time.monotonic() - killed < RECOVERY
            for completion_id in ids:
                whole = api.follow(completion_id)
                assert whole.last.event == "done"
                assert whole.text == ordered(400)
            assert len(api.provider_requests(api.tenant)) == len(ids) + len(lost)
            stack.settled(*ids)
