"""``tailrace keys``: API keys."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import typer

from tailrace.amounts import NANO
from tailrace.cli.options import Home, Json
from tailrace.cli.server_side import database
from tailrace.errors import TailraceError

app = typer.Typer(help="Make, change, list and revoke API keys.", no_args_is_help=True)

#: The limits, as they are stored.
LIMITS = ("rpm", "tpm", "concurrent", "queued", "queued_bytes", "budget_nano")

Rpm = Annotated[int | None, typer.Option(min=0, help="Requests per minute.")]
Tpm = Annotated[int | None, typer.Option(min=0, help="Tokens per minute.")]
Concurrent = Annotated[int | None, typer.Option(min=0, help="Completions at once.")]
Queued = Annotated[int | None, typer.Option(min=0, help="Completions that wait for a worker.")]
QueuedBytes = Annotated[int | None, typer.Option(min=0, help="Bytes of the requests that wait for a worker.")]
Budget = Annotated[float | None, typer.Option(min=0, help="Money in a calendar month (UTC), as prices are.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for.")],
    tenant: Annotated[
        str, typer.Option(metavar="T", help="The organisation that it belongs to.")
    ] = "default",
    admin: Annotated[
        bool, typer.Option("--admin", help="It may see and do what concerns all tenants.")
    ] = False,
    on_disconnect: Annotated[
        Literal["continue", "cancel"] | None,
        typer.Option(
            help="What becomes of a completion whose client leaves, where the request doesn't say (continue)."
        ),
    ] = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    concurrent: Concurrent = None,
    queued: Queued = None,
    queued_bytes: QueuedBytes = None,
    budget: Budget = None,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Make a key. It is shown once: only a hash of it is kept."""
    with database(home) as engine:
        from schemas.states import OnDisconnect
        from stores.apikeys import ApiKeys

        setting = None if on_disconnect is None else OnDisconnect(on_disconnect)
        limits = _limits(rpm, tpm, concurrent, queued, queued_bytes, budget)
        key, plaintext = ApiKeys(engine).create(name, tenant, admin, on_disconnect=setting, limits=limits)
    if as_json:
        told = {"id": key.id, "name": name, "tenant": tenant, "admin": admin, "on_disconnect": on_disconnect}
        told |= {limit: getattr(key, limit) for limit in LIMITS}
        print(json.dumps({"key": plaintext, **told}))
    else:
        print(f"key {plaintext}\nid  {key.id}")


@app.command("list")
def list_keys(as_json: Json = False, home: Home = None) -> None:
    """Show all keys, revoked ones too."""
    with database(home) as engine:
        from stores.apikeys import ApiKeys

        keys = ApiKeys(engine).list()
    if as_json:
        names = ("id", "name", "tenant", "admin", "on_disconnect", *LIMITS, "created_ms", "revoked_ms")
        print(json.dumps([{name: getattr(key, name) for name in names} for key in keys]))
        return
    for key in keys:
        made = datetime.fromtimestamp(key.created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        notes = ("admin" if key.admin else "", "revoked" if key.revoked_ms is not None else "")
        leaving = f"on-disconnect={key.on_disconnect}" if key.on_disconnect else ""
        print("  ".join(filter(None, (key.id, made, key.tenant, key.name, *notes, leaving, *_told(key)))))


@app.command("set")
def set_limits(
    id: Annotated[str, typer.Argument(metavar="ID", help="The id, as `keys list` shows it.")],
    rpm: Rpm = None,
    tpm: Tpm = None,
    concurrent: Concurrent = None,
    queued: Queued = None,
    queued_bytes: QueuedBytes = None,
    budget: Budget = None,
    home: Home = None,
) -> None:
    """Change limits of a key, within seconds; 0 takes one away."""
    limits = _limits(rpm, tpm, concurrent, queued, queued_bytes, budget)
    if not limits:
        raise TailraceError("no limit given: see `tailrace keys set --help`")
    with database(home) as engine:
        from stores.apikeys import ApiKeys

        if not ApiKeys(engine).set_limits(id, limits):
            raise TailraceError(f"no key {id} in use: see `tailrace keys list`")
    print(f"{id} changed")


def _limits(*given: float | None) -> dict[str, int | None]:
    """By column; money in nano units."""
    limits: dict[str, int | None] = {}
    for name, value in zip(LIMITS, given, strict=True):
        if value is not None:
            limits[name] = round(value * (NANO if name == "budget_nano" else 1)) or None
    return limits


def _told(key: Any) -> list[str]:
    told: list[str] = []
    for name in LIMITS:
        limit = getattr(key, name)
        if limit is not None:
            told.append(
                f"budget={limit / NANO:g}" if name == "budget_nano" else f"{name.replace('_', '-')}={limit}"
            )
    return told


@app.command()
def revoke(
    id: Annotated[str, typer.Argument(metavar="ID", help="The id, as `keys list` shows it.")],
    home: Home = None,
) -> None:
    """Make a key useless, within seconds."""
    with database(home) as engine:
        from stores.apikeys import ApiKeys

        keys = ApiKeys(engine)
        if not keys.revoke(id):
            raise TailraceError(f"no key {id} in use: see `tailrace keys list`")
    print(f"{id} revoked")
