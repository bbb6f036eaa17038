"""Limits of a provider, over several worker processes: what the provider's own log shows."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.api import anybody, asking
from tests.support.bulk import submitted
from tests.support.calls import most_at_once, most_in_window
from tests.support.stack import Stack
from tests.support.valkey import wait_until

pytestmark = pytest.mark.once

#: What counts as a minute here, in seconds.
WINDOW = 3.0
AGAIN = {"tries": 6, "first": 0.1, "longest": 0.5, "total": 60}
PROVIDERS = {
    "narrow": {"max_concurrency": 3, "retry": AGAIN},
    "slow": {"requests_per_minute": 5, "retry": AGAIN},
    "small": {"tokens_per_minute": 100, "retry": AGAIN},
    "shared": {"max_concurrency": 4, "bulk_share": 0.5, "retry": AGAIN},
    "adaptive": {"max_concurrency": 8, "retry": AGAIN},
}


@pytest.fixture(scope="module")
def limited() -> Iterator[Stack]:
    settings = {"LIMIT_WINDOW_SECONDS": str(WINDOW)}
    with Stack(settings=settings, interactive=2, concurrency=40, providers=PROVIDERS) as stack:
        yield stack
        stack.check_balanced()


def test_no_more_calls_at_once_than_the_provider_may_have(limited: Stack) -> None:
    """Also when a worker that has permits is killed, whose streams others go on with."""
    limited.backend.reset()
    with limited.worker("victim", "interactive", 40) as victim, limited.api() as api:
        fake = {"chunks": 20, "interval_ms": 20}
        ids = [api.background(f"narrow {n}", model="narrow:fake", fake=fake) for n in range(24)]
        wait_until(
            lambda: any(limited.state(i).get("worker", "").split(":")[1:2] == [str(victim.pid)] for i in ids)
        )
        victim.end(signal.SIGKILL)
        rows = limited.settled(*ids)
    assert {row.status.value for row in rows} == {"completed"}
    calls = limited.backend.completions
    assert most_at_once(calls) == 3
    assert len(calls) <= len(ids) + 3, "waiting counts as no try"


def test_a_permit_that_comes_free_is_used_at_once(limited: Stack) -> None:
    """Not when somebody looks again: a hundred short calls one after the other by three permits."""
    limited.backend.reset()
    with limited.api() as api:
        ids = [api.background(f"queue {n}", model="narrow:fake") for n in range(100)]
        rows = limited.settled(*ids)
    assert {row.status.value for row in rows} == {"completed"}
    assert {limited.attempts(row.id)[-1][0] for row in rows} == {1}, "an attempt that only waited is none"
    calls = limited.backend.completions
    assert len(calls) == 100
    assert most_at_once(calls) <= 3


def test_no_window_has_more_tokens_than_the_limit(limited: Stack) -> None:
    """More is reserved than is used, and corrected: the provider counts twenty tokens for each of these."""
    limited.backend.reset()
    with limited.api() as api:
        ids = [api.background(f"small {n}", model="small:fake", max_tokens=30) for n in range(12)]
        rows = limited.settled(*ids)
    assert {row.status.value for row in rows} == {"completed"}
    calls = limited.backend.completions
    assert len(calls) == 12
    assert 2 <= most_in_window(calls, WINDOW) * 20 <= 100


def test_bulk_leaves_interactive_work_its_share(limited: Stack) -> None:
    """Interactive work begins at once while bulk has all that it may have, and much of it waits."""
    limited.backend.reset()
    with limited.api() as api:
        fake = {"chunks": 100, "interval_ms": 60}
        bulk = [submitted(limited, asking(f"bulk {n}", model="shared:fake", fake=fake)) for n in range(4)]
        limited.backend.wait_for(2)
        assert api.plain("now", model="shared:fake").status_code == 200
        asked = [call.prompt for call in limited.backend.completions]
        assert asked.index("now") == 2
        rows = limited.settled(*bulk)
    assert {row.status.value for row in rows} == {"completed"}
    assert most_at_once(limited.backend.completions) <= 3


def test_a_provider_that_refuses_is_left_alone_for_as_long_as_it_asks(limited: Stack) -> None:
    """By all workers, also for requests that were not refused themselves; then all of them are answered."""
    limited.backend.reset()
    refusal = {"status": 429, "headers": {"retry-after": "2"}, "error": {"message": "slow down"}}
    limited.backend.script(refusal)
    with limited.api() as api:
        first = api.background("first", model="adaptive:fake")
        (refused,) = limited.backend.wait_for(1)
        wait_until(lambda: limited.redis.hget("tailrace:{p0}:permits:adaptive:state", "until") is not None)
        later = [api.background(f"later {n}", model="adaptive:fake") for n in range(12)]
        rows = limited.settled(first, *later)
    assert {row.status.value for row in rows} == {"completed"}
    assert min(call.at for call in limited.backend.completions[1:]) - refused.at >= 2


def test_doctor_and_metrics_tell_of_limits(limited: Stack) -> None:
    """Each provider with limits, and how far one that refused is slowed."""
    limited.backend.reset()
    limited.backend.script({"status": 503, "error": {"message": "overloaded"}})
    with limited.api() as api:
        assert api.plain("doctor", model="adaptive:fake").status_code == 200
    command = [sys.executable, "-m", "tailrace", "doctor", "--json"]
    told = subprocess.run(
        command, cwd=limited.folder, env=limited.environment, capture_output=True, text=True
    )
    found = {finding["check"]: finding for finding in json.loads(told.stdout)["checks"]}
    assert "0 of 3 calls at once" in found["limits narrow"]["found"]
    assert found["limits narrow"]["status"] == "ok"
    assert "slowed to" in found["limits adaptive"]["found"]
    assert found["limits adaptive"]["status"] == "warn"
    assert "limits fake" not in found
    with anybody(limited.url) as client:
        text = client.get("/metrics").text
    samples = {
        (sample.name, sample.labels["provider"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "provider" in sample.labels
    }
    assert 0 < samples["tailrace_provider_slowed_to", "adaptive"] < 1
    assert samples["tailrace_provider_slowed_to", "narrow"] == 1
    assert ("tailrace_provider_slowed_to", "fake") not in samples


def test_no_window_has_more_calls_than_the_limit(limited: Stack) -> None:
    """With a worker killed in the middle of it."""
    limited.backend.reset()
    with limited.worker("victim", "interactive", 40) as victim, limited.api() as api:
        fake = {"chunks": 5, "interval_ms": 10}
        ids = [api.background(f"slow {n}", model="slow:fake", fake=fake) for n in range(16)]
        limited.backend.wait_for(6)
        victim.end(signal.SIGKILL)
        rows = limited.settled(*ids)
    assert {row.status.value for row in rows} == {"completed"}
    assert most_in_window(limited.backend.completions, WINDOW) <= 5
