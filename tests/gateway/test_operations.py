"""What those who run it ask: is it alive, is it ready, what can it do."""

from __future__ import annotations

import json
import re

from prometheus_client.parser import text_string_to_metric_families

from tests.support.api import Api, anybody, error_of, ordered
from tests.support.ports import free_port
from tests.support.stack import Stack
from tests.support.valkey import wait_until


def test_it_is_alive_and_ready_without_a_key(stack: Stack) -> None:
    """For load balancers and supervisors."""
    with anybody(stack.url) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        ready = client.get("/readyz")
        assert ready.status_code == 200
        assert ready.json() == {
            "status": "ok",
            "parts": {"redis": "ok", "database": "ok", "admission": "open"},
        }


def test_its_description_names_every_path_and_loads_nothing(stack: Stack) -> None:
    """/openapi.json is OpenAPI 3.1 with references that lead somewhere; /docs needs no other host."""
    with anybody(stack.url) as client:
        document = client.get("/openapi.json").json()
        page = client.get("/docs")
    assert document["openapi"].startswith("3.1")
    for path in (
        "/v1/chat/completions",
        "/v1/chat/completions/stream",
        "/v1/chat/completions/{id}",
        "/v1/chat/completions/{id}/stream",
        "/v1/chat/completions/{id}/cancel",
        "/v1/chat/completions/{id}/token",
        "/v1/cache",
        "/v1/files",
        "/v1/files/{id}",
        "/v1/files/{id}/content",
        "/v1/batches",
        "/v1/batches/estimate",
        "/v1/batches/{id}",
        "/v1/batches/{id}/cancel",
        "/v1/batches/{id}/retry",
        "/v1/models",
    ):
        assert path in document["paths"]
    for reference in re.findall(r'"\$ref": ?"#/([^"]+)"', json.dumps(document)):
        place = document
        for step in reference.split("/"):
            place = place[step]
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r'(src|href)="?(https?:)?//', page.text)


def test_without_valkey_it_is_not_ready_and_accepts_nothing(stack_on_postgres: Stack) -> None:
    """503 that says to try again, within seconds and with nothing kept; afterwards all is well."""
    stack = stack_on_postgres
    with stack.api() as api:
        completion_id = api.seed().id
        stack.forget(completion_id)
        with stack.valkey.paused():
            answer = api.get("/readyz")
            assert answer.status_code == 503
            parts = answer.json()["parts"]
            assert (parts["redis"], parts["database"]) == ("unavailable", "ok")
            answer = api.plain()
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            assert error_of(answer)["code"] == "unavailable"
        wait_until(lambda: api.get("/readyz").status_code == 200, what="ready again")
        wait_until(lambda: api.plain().status_code == 200, what="answers again")


def test_without_its_broker_it_accepts_nothing(api: Api, stack: Stack) -> None:
    """503, and what was begun is undone: the same request elsewhere is the only one of its kind."""
    port = free_port()
    stack.add_gateway("brokerless", port, TAILRACE_BROKER_URL=f"redis://127.0.0.1:{free_port()}/0")
    with Api(f"http://127.0.0.1:{port}", api.api_key, tenant=api.tenant, backend=api.backend) as other:
        for key in ({}, {"Idempotency-Key": "k"}):
            answer = other.plain(api.tenant, headers=key)
            assert answer.status_code == 503
            assert error_of(answer)["code"] == "unavailable"
            assert "retry-after" in answer.headers
    stack.remove("brokerless")
    assert not api.provider_requests(api.tenant)
    whole = api.seed(api.tenant, headers={"Idempotency-Key": "k"})
    assert whole.text == ordered()
    assert api.seed(api.tenant, headers={"x-last-chunk-index": "-1"}).frames == whole.frames
    assert len(api.provider_requests(api.tenant)) == 1


def test_without_its_database_it_is_not_ready(stack_on_postgres: Stack) -> None:
    """What runs goes on: keys in use are trusted for a while, and chunks don't come from SQL."""
    stack = stack_on_postgres
    with stack.api() as api:
        api.plain()
        with stack.engine.connect() as connection:
            connection.exec_driver_sql("LOCK TABLE api_keys, completions IN ACCESS EXCLUSIVE MODE")
            assert api.get("/healthz").status_code == 200
            wait_until(lambda: api.plain().status_code == 200, what="answer")
            connection.rollback()
        wait_until(lambda: api.get("/readyz").status_code == 200, what="ready again")


def test_what_is_not_there_is_404_in_the_errors_shape(api: Api) -> None:
    """And a method that a path doesn't have is 405 that names those that it has."""
    for path in ("/", "/v1", "/v1/", "/v1/nothing", "/v1/chat/completions/", "/favicon.ico", "/v1//models"):
        answer = api.get(path)
        assert answer.status_code == 404, path
        error_of(answer)
    answer = api.put("/v1/chat/completions")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, POST"
    error_of(answer)


def test_metrics_say_where_work_is(stack: Stack, api: Api) -> None:
    """In Prometheus's format, without a key; and whether Redis answers."""
    with anybody(stack.url) as client:
        running = api.background(fake={"chunks": 200, "interval_ms": 100})
        wait_until(lambda: stack.state(running).get("state") == "leased", what="stream")
        answer = client.get("/metrics")
        api.post(f"/v1/chat/completions/{running}/cancel")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["tailrace_redis_up",] == 1
    assert samples["tailrace_admission_open",] == 1
    assert samples["tailrace_generations", "leased"] >= 1
    assert samples["tailrace_dead_letters",] == 0
    assert {("tailrace_queued", "bulk"), ("tailrace_queued", "interactive")} <= samples.keys()
    assert samples["tailrace_circuit_open", "fake"] == 0
    assert samples["process_cpu_seconds_total",] > 0
    stack.settled(running)
