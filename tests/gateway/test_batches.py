"""``/v1/batches``: making, reading, listing and cancelling batches, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.api import Api, asking
from tests.support.stack import Stack
from tests.support.valkey import wait_until

CHAT = "/v1/chat/completions"


def row(custom_id: str, /, **fields: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": asking(custom_id), **fields}


def upload(api: Api, rows: Iterable[Any], purpose: str = "batch", user: str | None = None) -> str:
    data = b"".join(json.dumps(r).encode() + b"\n" for r in rows)
    files = {"file": ("input.jsonl", data, "application/jsonl")}
    answer = api.post("/v1/files", data={"purpose": purpose}, files=files, headers=on_behalf(user))
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def body(file_id: str, **fields: Any) -> dict[str, Any]:
    return {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **fields}


def on_behalf(user: str | None) -> dict[str, str]:
    return {} if user is None else {"X-On-Behalf-Of": user}


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["code"]


def test_a_batch_has_openais_shape_and_ours_beside_it(each_api: Api) -> None:
    file_id = upload(each_api, [row("a")])
    answer = each_api.post("/v1/batches", json=body(file_id, metadata={"run": "7"}, completion_window="3d"))
    assert answer.status_code == 200, answer.text
    batch = answer.json()
    assert batch["id"].startswith("batch_")
    assert batch["expires_at"] - batch["created_at"] == 3 * 86_400
    times = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    if batch["status"] == "validating":  # a worker may have been faster
        assert {name: batch[f"{name}_at"] for name in times} == dict.fromkeys(times)
        assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert batch["usage"] == {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 0,
    }
    known = {k: batch[k] for k in ("object", "endpoint", "errors", "input_file_id", "completion_window")}
    assert known == {
        "object": "batch",
        "endpoint": CHAT,
        "errors": None,
        "input_file_id": file_id,
        "completion_window": "3d",
    }
    assert batch["metadata"] == {"run": "7"}
    assert (batch["output_file_id"], batch["error_file_id"], batch["retry_of"]) == (None, None, None)
    assert (batch["max_concurrency"], batch["max_error_rate"], batch["cost"]) == (1000, 0.5, None)
    again = each_api.get(f"/api/v1/llm/batches/{batch['id']}")
    assert again.status_code == 200
    assert again.json()["id"] == batch["id"]


def test_what_is_ours_can_be_set(api: Api) -> None:
    file_id = upload(api, [row("a")])
    fields: dict[str, Any] = {"max_concurrency": 7.0, "max_error_rate": 1, "metadata": None}
    fields["output_expires_after"] = {"anchor": "created_at", "seconds": 3600}
    path = "/api/v1/llm/chat/completions"
    answer = api.post("/api/v1/llm/batches", json=body(file_id, endpoint=path, **fields))
    assert answer.status_code == 200, answer.text
    assert (answer.json()["max_concurrency"], answer.json()["max_error_rate"]) == (7, 1.0)
    assert answer.json()["endpoint"] == path


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input_file_id": None}, "input_file_id"),
        ({"input_file_id": 5}, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"endpoint": None}, "endpoint"),
        ({"completion_window": "24"}, "completion_window"),
        ({"completion_window": "0h"}, "completion_window"),
        ({"completion_window": "366d"}, "completion_window"),
        ({"completion_window": "24 h"}, "completion_window"),
        ({"completion_window": None}, "completion_window"),
        ({"metadata": {"k": 5}}, "metadata.k"),
        ({"metadata": {str(n): "v" for n in range(17)}}, "metadata"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_concurrency": 1.5}, "max_concurrency"),
        ({"max_concurrency": True}, "max_concurrency"),
        ({"max_error_rate": 1.1}, "max_error_rate"),
        ({"max_error_rate": "0.5"}, "max_error_rate"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "output_expires_after.seconds"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, "output_expires_after.anchor"),
        ({"max_concurency": 5}, "max_concurency"),
    ],
)
def test_a_bad_field_is_refused_by_name(api: Api, fields: dict[str, Any], param: str) -> None:
    answer = api.post("/v1/batches", json=body("file-1", **fields))
    assert refusal(answer) == (400, param, "invalid_request"), answer.text


def test_a_body_that_is_no_object_is_refused(api: Api) -> None:
    assert api.post("/v1/batches", content=b"{").status_code == 400
    assert api.post("/v1/batches", content=b"[]").status_code == 400
    assert api.post("/v1/batches", content=b"").status_code == 400


def test_the_input_file_must_be_the_callers_and_for_batches(api: Api, stack: Stack) -> None:
    mine, other = upload(api, [row("a")]), upload(api, [row("a")], purpose="user_data")
    missing = (404, "input_file_id", "file_not_found")
    assert refusal(api.post("/v1/batches", json=body("file-unknown"))) == missing
    assert refusal(api.post("/v1/batches", json=body(other))) == (400, "input_file_id", "invalid_request")
    with stack.api() as stranger:
        assert refusal(stranger.post("/v1/batches", json=body(mine))) == missing
    assert refusal(api.post("/v1/batches", json=body(mine), headers=on_behalf("ann"))) == missing


def test_a_batch_is_there_for_its_tenant_and_its_end_user_alone(api: Api, stack: Stack) -> None:
    file_id = upload(api, [row("a")], user="ann")
    id = api.post("/v1/batches", json=body(file_id), headers=on_behalf("ann")).json()["id"]
    gone = (404, "id", "batch_not_found")
    assert api.get(f"/v1/batches/{id}").status_code == 200
    assert api.get(f"/v1/batches/{id}", headers=on_behalf("ann")).status_code == 200
    assert refusal(api.get(f"/v1/batches/{id}", headers=on_behalf("bob"))) == gone
    with stack.api() as stranger:
        for answer in (
            stranger.get(f"/v1/batches/{id}"),
            stranger.post(f"/v1/batches/{id}/cancel"),
            stranger.post(f"/v1/batches/{id}/retry"),
        ):
            assert refusal(answer) == gone
        assert stranger.get("/v1/batches").json()["data"] == []
    assert api.get("/v1/batches", headers=on_behalf("bob")).json()["data"] == []
    assert refusal(api.get("/v1/batches/batch_1")) == gone


def test_batches_are_listed_newest_first_in_pages(api: Api) -> None:
    file_id = upload(api, [row("a")])
    made = [api.post("/v1/batches", json=body(file_id)).json()["id"] for _ in range(5)]
    first = api.get("/v1/batches", params={"limit": 3}).json()
    assert [b["id"] for b in first["data"]] == made[:1:-1]
    assert (first["object"], first["has_more"]) == ("list", True)
    assert (first["first_id"], first["last_id"]) == (made[4], made[2])
    rest = api.get("/v1/batches", params={"limit": 3, "after": first["last_id"]}).json()
    assert [b["id"] for b in rest["data"]] == made[1::-1]
    assert not rest["has_more"]
    bad = [("limit", "0"), ("limit", "101"), ("after", "x"), ("page", "2")]
    for param, value in bad:
        assert refusal(api.get("/v1/batches", params={param: value}))[:2] == (400, param)


def test_one_idempotency_key_makes_one_batch(api: Api) -> None:
    file_id = upload(api, [row("a")])
    key = {"Idempotency-Key": "night-1"}
    first = api.post("/v1/batches", json=body(file_id), headers=key).json()
    again = api.post("/v1/batches", json=body(file_id), headers=key).json()
    assert again["id"] == first["id"]
    other = api.post("/v1/batches", json=body(file_id, max_concurrency=5), headers=key)
    assert refusal(other) == (422, "Idempotency-Key", "idempotency_key_reused")
    assert len(api.get("/v1/batches").json()["data"]) == 1
    # A refused one has used up nothing.
    fresh = {"Idempotency-Key": "night-2"}
    assert api.post("/v1/batches", json=body("file-unknown"), headers=fresh).status_code == 404
    assert api.post("/v1/batches", json=body(file_id), headers=fresh).status_code == 200


def test_one_idempotency_key_makes_one_batch_of_many_calls_at_once(each_api: Api) -> None:
    asked = body(upload(each_api, [row("a")]))

    def make(_: int) -> str:
        answer = each_api.post("/v1/batches", json=asked, headers={"Idempotency-Key": "at once"})
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(make, range(24)))) == 1
    assert len(each_api.get("/v1/batches").json()["data"]) == 1


def test_a_batch_that_has_not_ended_is_not_retried(api: Api) -> None:
    file_id = upload(api, [row("a", body=asking("a", fake={"headers_delay_ms": 30_000}))])
    id = api.post("/v1/batches", json=body(file_id)).json()["id"]
    assert refusal(api.post(f"/v1/batches/{id}/retry"))[0] == 409
    assert refusal(api.post(f"/v1/batches/{id}/retry", json={"codes": "x"})) == (
        400,
        "codes",
        "invalid_request",
    )
    cancelled = api.post(f"/v1/batches/{id}/cancel")
    assert cancelled.status_code == 200, cancelled.text
    assert cancelled.json()["status"] in ("cancelling", "cancelled")
    assert cancelled.json()["cancelling_at"] is not None


def test_an_estimate_says_what_a_batch_would_come_to_and_sends_nothing(each_api: Api) -> None:
    cached = asking("known", temperature=0)
    assert each_api.post(CHAT, json=cached).status_code == 200
    wait_until(lambda: each_api.get("/v1/cache").json()["entries"] == 1, 60, "the answer in the books")
    priced = {"model": "priced:fake", "max_tokens": 100}
    good = [row(f"r{n}", body=asking(f"{n}", **priced)) for n in range(8)]
    bad = [
        row("r1"),
        row("no-model", body=asking("x", model="listed:none")),
        row("cold", body=asking("x", temperature=9)),
    ]
    file_id = upload(each_api, [*good, row("hit", body=cached), *bad])

    def estimate(**fields: Any) -> dict[str, Any]:
        answer = each_api.post("/v1/batches/estimate", json={"input_file_id": file_id, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    found = estimate()
    assert found["object"] == "batch.estimate"
    assert (found["rows"], found["sampled"], found["valid"], found["invalid"]) == (12, 12, 9, 3)
    assert found["cached"] == 1
    assert found["completion_tokens"] == 800
    assert int(found["cost"]) > 800 * 2_000
    assert [e["code"] for e in found["errors"]] == [
        "duplicate_custom_id",
        "model_not_found",
        "invalid_request",
    ]
    part = estimate(sample=4)
    assert (part["rows"], part["sampled"], part["completion_tokens"]) == (12, 4, 1200)
    assert each_api.get("/v1/batches").json()["data"] == []
    unpriced = upload(each_api, [row("a")])
    answer = each_api.post("/v1/batches/estimate", json={"input_file_id": unpriced})
    assert answer.json()["cost"] is None
    assert each_api.post("/v1/batches/estimate", json={"input_file_id": "file-x"}).status_code == 404


def over(api: Api, id: str) -> dict[str, Any]:
    wait_until(lambda: ended(api.get(f"/v1/batches/{id}").json()), 120, f"end of {id}")
    return api.get(f"/v1/batches/{id}").json()


def ended(batch: dict[str, Any]) -> bool:
    return batch["status"] in ("completed", "failed", "expired", "cancelled")


def test_the_rows_that_failed_are_asked_again_alone(each_api: Api) -> None:
    refused = {"fake": {"status": 400, "error": {"message": "no", "code": "bad_words"}}}
    broken = {"fake": {"status": 500, "error": {"message": "ill"}}}
    rows = [row(f"r{n}") for n in range(4)]
    rows += [row("bad-1", body=asking("x", **refused), headers={"X-On-Behalf-Of": "ann", "x-sample": "2"})]
    rows += [row("bad-2", body=asking("y", **broken)), row("bad-3", body=asking("z", **refused))]
    made = each_api.post(
        "/v1/batches", json=body(upload(each_api, rows), metadata={"run": "1"}, max_concurrency=9)
    )
    batch = over(each_api, made.json()["id"])
    assert (batch["status"], batch["request_counts"]["failed"]) == ("completed", 3)
    path = f"/v1/batches/{batch['id']}/retry"
    failed = each_api.get(f"/v1/files/{batch['error_file_id']}/content").text
    codes = {
        line["custom_id"]: line["response"]["body"]["error"]["code"]
        for line in map(json.loads, failed.splitlines())
    }
    assert codes["bad-1"] == codes["bad-3"] != codes["bad-2"]

    def retried(**fields: Any) -> list[dict[str, Any]]:
        answer = each_api.post(path, json=fields, headers={"Idempotency-Key": repr(fields)})
        assert answer.status_code == 200, answer.text
        again = each_api.post(path, json=fields, headers={"Idempotency-Key": repr(fields)}).json()
        assert again["id"] == answer.json()["id"] != batch["id"]
        assert (again["retry_of"], again["metadata"], again["max_concurrency"]) == (
            batch["id"],
            {"run": "1"},
            9,
        )
        whole = over(each_api, again["id"])
        assert whole["status"] == "completed"
        content = each_api.get(f"/v1/files/{again['input_file_id']}/content").text
        return [json.loads(line) for line in content.splitlines()]

    assert [line["custom_id"] for line in retried()] == ["bad-1", "bad-2", "bad-3"]
    first, third = retried(codes=[codes["bad-1"]])
    assert (first["custom_id"], third["custom_id"]) == ("bad-1", "bad-3")
    assert first["headers"] == {"X-On-Behalf-Of": "ann", "x-sample": "2"}
    assert "headers" not in third
    assert third["body"] == asking("z", **refused)
    nothing = each_api.post(path, json={"codes": ["no_such_code"]})
    assert refusal(nothing) == (409, None, "nothing_to_retry")


def test_the_rows_that_a_cancel_left_unsent_are_asked_by_a_retry(each_api: Api) -> None:
    slow = [row(f"r{n}", body=asking(f"{n}", fake={"headers_delay_ms": 30_000})) for n in range(120)]
    quick = [row("quick")]
    made = each_api.post(
        "/v1/batches", json=body(upload(each_api, [*quick, *slow]), max_concurrency=5)
    ).json()

    def begun() -> bool:
        return each_api.get(f"/v1/batches/{made['id']}").json()["request_counts"]["completed"] == 1

    wait_until(begun, 120, "an answer")
    assert each_api.post(f"/v1/batches/{made['id']}/cancel").status_code == 200
    batch = over(each_api, made["id"])
    assert (batch["status"], batch["request_counts"]) == (
        "cancelled",
        {"total": 121, "completed": 1, "failed": 120},
    )
    again = each_api.post(f"/v1/batches/{made['id']}/retry", json={"codes": ["batch_cancelled"]}).json()
    content = each_api.get(f"/v1/files/{again['input_file_id']}/content").text
    assert [json.loads(line)["custom_id"] for line in content.splitlines()] == [f"r{n}" for n in range(120)]
    each_api.post(f"/v1/batches/{again['id']}/cancel")


def test_files_of_a_batch_are_kept_as_long_as_it_says(each_api: Api) -> None:
    expiry = {"anchor": "created_at", "seconds": 7200}
    rows = [row("a"), row("b", body=asking("b", fake={"status": 400}))]
    made = each_api.post("/v1/batches", json=body(upload(each_api, rows), output_expires_after=expiry)).json()
    batch = over(each_api, made["id"])
    for name in ("output_file_id", "error_file_id"):
        file = each_api.get(f"/v1/files/{batch[name]}").json()
        assert file["expires_at"] - file["created_at"] == 7200
    again = each_api.post(f"/v1/batches/{batch['id']}/retry").json()
    file = each_api.get(f"/v1/files/{over(each_api, again['id'])['error_file_id']}").json()
    assert file["expires_at"] - file["created_at"] == 7200


def test_a_row_has_the_fingerprint_of_the_same_request_by_itself(each_api: Api, each_stack: Stack) -> None:
    """So that each finds the other's answer in the cache."""
    request = asking("alike", temperature=0.0, max_tokens=20, n=1)
    sent = each_api.post(CHAT, json=request, headers={"x-sample": "1"})
    wait_until(lambda: each_api.get("/v1/cache").json()["entries"] == 1, 60, "the answer in the books")
    alone = each_stack.books.completion(sent.headers["x-completion-id"])
    rows = [row("a", body={**request, "stream": True, "user": "x"}, headers={"x-sample": "1"})]
    batch = over(each_api, each_api.post("/v1/batches", json=body(upload(each_api, rows))).json()["id"])
    output = each_api.get(f"/v1/files/{batch['output_file_id']}/content").json()
    assert alone is not None
    assert output["fingerprint"] == alone.fingerprint
    assert each_api.get("/v1/cache").json()["hits"] == 1
