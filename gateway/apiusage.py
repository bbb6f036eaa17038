"""The description of usage reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.apiparts import BEHALF, answers_of, operation, query


def usage_paths() -> dict[str, Any]:
    texts = {"type": "array", "items": {"type": "string"}}
    answers = answers_of(s403="Another tenant's records, and the key is no admin's.")

    def parameters(*groups: str, widths: Sequence[str] = (), batch: bool = False) -> list[Any]:
        found = [
            {
                **query("start_time", "Seconds since the epoch, inclusive.", {"type": "integer"}),
                "required": True,
            },
            query("end_time", "Seconds since the epoch, exclusive; now.", {"type": "integer"}),
            query("group_by", "", {"type": "array", "items": {"enum": list(groups)}}),
            *(
                query(name, "Any of these; `name=a&name=b` or `name[]=a`.", texts)
                for name in ("models", "user_ids", "external_user_ids", "api_key_ids", "org_ids")
            ),
            query("all_orgs", "An admin key sees all tenants; `false`: its own.", {"type": "boolean"}),
        ]
        if batch:
            found.append(query("batch", "Those of batches alone, or those of none.", {"type": "boolean"}))
        if widths:
            most = "1440, 168 or 31" if len(widths) > 1 else "180"
            found += [
                query(
                    "bucket_width",
                    "Buckets begin at whole ones in UTC.",
                    {"enum": [*widths], "default": "1d"},
                ),
                query("limit", f"Buckets of a page; at most {most}.", {"type": "integer", "minimum": 1}),
                query("page", "`next_page` of the page before.", {"type": "string"}),
            ]
        return [*found, BEHALF]

    usage = operation(
        "Tokens and requests, by bucket of time",
        parameters(
            *("model", "user_id", "api_key_id", "external_user_id", "org_id", "batch", "project_id"),
            widths=("1m", "1h", "1d"),
            batch=True,
        ),
        answers,
    )
    return {
        "/v1/usage/completions": {"get": usage},
        "/v1/organization/usage/completions": {"get": usage},
        "/v1/usage/costs": {
            "get": operation(
                "What it cost; nano values are strings, 10⁹ to the dollar, and null where nobody knows",
                parameters("model", "api_key_id", "team_id", "external_user_id", "org_id"),
                answers,
            )
        },
        "/v1/organization/costs": {
            "get": operation(
                "What it cost by day; a line item is a model",
                parameters(
                    *("line_item", "project_id", "user_id", "api_key_id", "external_user_id", "org_id"),
                    widths=("1d",),
                ),
                answers,
            )
        },
        "/v1/usage/summary": {
            "get": operation(
                "Requests, tokens, cost and what the cache saved",
                parameters("model", "api_key_id", "external_user_id", "org_id", "day", batch=True),
                answers,
            )
        },
    }
