"""What a run asks: arms, and their requests as rows of the Batch format."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from tailrace.batchinput.rendering import URL
from tailrace.evaluation.shapes import Arm, Item
from tailrace.evaluation.suite import Suite

#: Keys that are file names as they are, on case-insensitive file systems too.
_PLAIN_NAME = re.compile(r"[a-z0-9_][a-z0-9._-]{0,99}")
#: Characters of a key that its file name begins with, where it is no file name itself.
_NAME_BEGINS = 80

_canonical = msgspec.json.Encoder(order="deterministic").encode


def arms(suite: Suite) -> list[Arm]:
    """Every model under every prompt, in the suite's order. A key is the model's label, or ``label/prompt`` where there
    are several prompts; prompts' names have no slash, so keys are unique."""
    several = len(suite.prompts) > 1
    return [
        Arm(
            key=f"{model.label}/{prompt.name}" if several else model.label,
            model=model,
            prompt=prompt,
            params={**suite.params, **model.params},
        )
        for model in suite.models
        for prompt in suite.prompts
    ]


def file_name(key: str) -> str:
    """A name without a suffix for the files of an arm: its own for each key, readable, safe in a shell and on any file
    system."""
    if _PLAIN_NAME.fullmatch(key):
        return key
    begin = re.sub(r"[^a-z0-9._-]+", "-", key.lower())[:_NAME_BEGINS].strip("-.") or "arm"
    return f"{begin}~{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def row(
    arm: Arm, item: Item, sample: int, messages: Sequence[dict[str, Any]], *, fresh: bool = False
) -> dict[str, Any]:
    """A line of a batch's input. ``sample`` goes along as ``x-sample``, so that every sample has a place of its own in
    the cache, at any temperature; with ``fresh`` the cache isn't asked, and keeps the new answer."""
    headers = {"x-sample": str(sample)}
    if fresh:
        headers["Cache-Control"] = "no-cache"
    return {
        "custom_id": custom_id(item.id, sample),
        "method": "POST",
        "url": URL,
        "headers": headers,
        "body": {"model": arm.model.model, "messages": list(messages), **arm.params},
    }


def judge_row(id: str, body: dict[str, Any], *, fresh: bool = False) -> dict[str, Any]:
    """What a judge is asked about one answer, as a line of a batch's input. It is in the cache at any temperature."""
    headers = {"x-sample": "0"} | ({"Cache-Control": "no-cache"} if fresh else {})
    return {"custom_id": id, "method": "POST", "url": URL, "headers": headers, "body": body}


def custom_id(item: str, sample: int) -> str:
    return f"{item}/{sample}"


def digest(row: dict[str, Any]) -> str:
    """32 hex digits of what a row asks: its body and ``x-sample``. Equal ones ask the same, whatever the custom_id is
    and whether or not the cache is asked."""
    asked = {"body": row["body"], "sample": row.get("headers", {}).get("x-sample")}
    return hashlib.blake2b(_canonical(asked), digest_size=16).hexdigest()
