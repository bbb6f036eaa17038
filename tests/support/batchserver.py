"""A server of files and batches in this process, as a transport for the client; it knows what it was asked."""

from __future__ import annotations

import email.policy
import json
from collections import Counter
from collections.abc import Callable
from email.parser import BytesParser
from typing import Any

import httpx

#: Nano-dollars of a row.
COST = 7


def says(row: dict[str, Any]) -> str:
    """What its model answers: who was asked for what, and a grade for those who look for one."""
    body, sample = row["body"], row["headers"]["x-sample"]
    return f"{body['model']}{sample} is right about {body['messages'][-1]['content']}\nGRADE: P"


class BatchServer(httpx.AsyncBaseTransport):
    """Each look at a batch takes it a step on: validated, half of its rows answered, all of them. ``asked`` counts rows
    by model, prompt and sample. ``answer`` gives a row's text, None for one that fails; ``refused`` is what validation
    finds, and ``unknown`` models are refused by estimates. ``step`` is called before and after each request is carried
    out."""

    def __init__(self, step: Callable[[], None] | None = None) -> None:
        self.step = step or (lambda: None)
        self.answer: Callable[[dict[str, Any]], str | None] = says
        self.refused: list[dict[str, Any]] = []
        self.unknown: set[str] = set()
        self.asked: Counter[tuple[str, str, str]] = Counter()
        self.files: dict[str, bytes] = {}
        self.expiring: set[str] = set()
        self.batches: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, str] = {}
        self.lines: dict[str, list[dict[str, Any]]] = {}
        self.cost = self.uploads = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.step()
        response = self._carry_out(request, await request.aread())
        self.step()
        return response

    def _carry_out(self, request: httpx.Request, content: bytes) -> httpx.Response:
        match [request.method, *request.url.path.removeprefix("/v1/").split("/")]:
            case ["POST", "files"]:
                return _reply(self._upload(request, content))
            case ["DELETE", "files", id]:
                return _reply({"id": id}) if self.files.pop(id, None) is not None else _not_found()
            case ["GET", "files", id, "content"]:
                return httpx.Response(200, content=self.files[id]) if id in self.files else _not_found()
            case ["POST", "batches", "estimate"]:
                return _reply(self._estimate(json.loads(content)["input_file_id"]))
            case ["POST", "batches"]:
                return self._create(json.loads(content), request.headers["idempotency-key"])
            case ["GET", "batches"]:
                return _reply({"data": [*self.batches.values()][::-1], "has_more": False})
            case ["GET", "batches", id, "results"]:
                return httpx.Response(200, content=_jsonl(self.lines[id]))
            case ["GET", "batches", id] if id in self.batches:
                return _reply(self._look(self.batches[id]))
            case ["POST", "batches", id, "cancel"]:
                return self._cancel(self.batches[id])
            case _:
                return _not_found()

    def _upload(self, request: httpx.Request, content: bytes) -> dict[str, Any]:
        head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
        form = BytesParser(policy=email.policy.HTTP).parsebytes(head + content)
        parts = {part.get_param("name", header="content-disposition"): part for part in form.iter_parts()}
        self.uploads += 1
        id = f"file-{self.uploads}"
        file = parts["file"].get_payload(decode=True)
        assert isinstance(file, bytes)
        self.files[id] = file
        if "expires_after[seconds]" in parts:
            self.expiring.add(id)
        return {"id": id, "created_at": 100}

    def _estimate(self, file: str) -> dict[str, Any]:
        models = {json.loads(line)["body"]["model"] for line in self.files[file].splitlines()}
        errors = [{"message": f"There is no model '{model}'."} for model in models & self.unknown]
        return {"errors": errors, "cost": "0", "cached": 0}

    def _create(self, asked: dict[str, Any], key: str) -> httpx.Response:
        if asked["input_file_id"] not in self.files:
            return _not_found()
        id = self.keys.setdefault(key, f"batch_{len(self.batches)}")
        if id not in self.batches:
            self.lines[id] = []
            self.batches[id] = {
                "id": id,
                "input_file_id": asked["input_file_id"],
                "metadata": asked["metadata"],
                "status": "validating",
                "created_at": 100,
                "in_progress_at": None,
                "request_counts": {"total": 0, "completed": 0, "failed": 0},
                "errors": None,
                "cost": None,
            }
        return _reply(self.batches[id])

    def _look(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        lines = self.lines[batch["id"]]
        match batch["status"]:
            case "validating" if self.refused:
                batch |= {"status": "failed", "errors": {"data": self.refused}}
            case "validating":
                batch |= {"status": "in_progress", "in_progress_at": 100}
            case "in_progress" if not lines:
                self._do(batch, rows[: len(rows) // 2 or 1])
            case "in_progress":
                self._do(batch, rows[len(lines) :])
                self._end(batch, "completed")
            case "cancelling":
                unsent = {"code": "batch_cancelled", "message": "it was cancelled"}
                lines += [
                    {"custom_id": row["custom_id"], "response": None, "error": unsent}
                    for row in rows[len(lines) :]
                ]
                self._end(batch, "cancelled")
            case _:
                pass
        return batch

    def _do(self, batch: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        for row in rows:
            body = row["body"]
            sample = row["headers"]["x-sample"]
            self.asked[body["model"], body["messages"][-1]["content"], sample] += 1
            text = self.answer(row)
            self.cost += COST
            answered = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
            failed = {"error": {"code": "broken", "message": "no"}}
            response = (
                {"status_code": 500, "body": failed}
                if text is None
                else {"status_code": 200, "body": answered}
            )
            record = {"cost_nano": str(COST)}
            self.lines[batch["id"]].append(
                {"custom_id": row["custom_id"], "response": response, "error": None, "record": record}
            )
        batch["cost"] = str(int(batch["cost"] or 0) + COST * len(rows))
        batch["request_counts"] = {"total": len(rows), "completed": len(self.lines[batch["id"]]), "failed": 0}

    def _end(self, batch: dict[str, Any], status: str) -> None:
        output = f"file-out-{batch['id']}"
        self.files[output] = _jsonl(self.lines[batch["id"]])
        batch |= {"status": status, "output_file_id": output}

    def _cancel(self, batch: dict[str, Any]) -> httpx.Response:
        if batch["status"] == "validating":
            batch["status"] = "cancelled"
        elif batch["status"] == "in_progress":
            batch["status"] = "cancelling"
        return _reply(batch)


def _jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _reply(value: Any) -> httpx.Response:
    return httpx.Response(200, content=json.dumps(value).encode())


def _not_found() -> httpx.Response:
    error = {
        "message": "It is not there.",
        "type": "invalid_request_error",
        "param": None,
        "code": "not_found",
    }
    return httpx.Response(404, content=json.dumps({"error": error}).encode())
