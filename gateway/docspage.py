"""The API's description as a page, made from the OpenAPI document, that loads nothing else."""

from __future__ import annotations

from functools import cache
from html import escape
from typing import Any

from gateway.openapi import document

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733 }
details { border: 1px solid #d5dde5; border-radius: 6px; margin: .5rem 0; padding: .5rem .8rem }
summary { cursor: pointer } code { background: #f0f3f6; padding: .1rem .3rem; border-radius: 3px }
.verb { display: inline-block; width: 4.5rem; font-weight: 700; color: #0b5cad } .about { color: #566573 }
table { border-collapse: collapse; margin: .5rem 0 } td { padding: .2rem .8rem .2rem 0; vertical-align: top }
"""


@cache
def page() -> str:
    """The document as HTML."""
    spec = document()
    rows: list[str] = []
    for path, item in spec["paths"].items():
        if path.startswith("/api/"):
            continue
        for verb, operation in item.items():
            rows.append(_details(verb, path, operation))
    fields = spec["components"]["schemas"]["ChatCompletionRequest"].get("properties", {})
    listed = "".join(f"<code>{escape(name)}</code> " for name in fields)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Tailrace API</title><style>{_STYLE}</style>"
        f"<h1>Tailrace API {escape(spec['info']['version'])}</h1><p>{escape(spec['info']['description'])}"
        " Every path under <code>/v1</code> is also served under <code>/api/v1/llm</code>. Send your key as "
        "<code>Authorization: Bearer &lt;key&gt;</code>. The machine-readable form is at "
        '<a href="/openapi.json">/openapi.json</a>.</p>'
        + "".join(rows)
        + f"<h2>Request fields</h2><p>{listed}</p></html>"
    )


def _details(verb: str, path: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        f"<tr><td><code>{escape(p['name'])}</code><td>{escape(p['in'])}<td>{escape(p.get('description', ''))}"
        for p in operation["parameters"]
    )
    answers = "".join(
        f"<tr><td><code>{code}</code><td>{escape(answer['description'])}"
        for code, answer in operation["responses"].items()
    )
    return (
        f"<details><summary><span class=verb>{verb.upper()}</span><code>{escape(path)}</code> "
        f"<span class=about>{escape(operation['summary'])}</span></summary>"
        f"<table>{parameters}</table><table>{answers}</table></details>"
    )
