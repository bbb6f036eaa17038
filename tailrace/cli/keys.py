"""``tailrace keys``: API keys."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Literal

import typer

from tailrace.cli.options import Home, Json
from tailrace.cli.server_side import database
from tailrace.errors import TailraceError

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


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
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Make a key. It is shown once: only a hash of it is kept."""
    with database(home) as engine:
        from schemas.states import OnDisconnect
        from stores.apikeys import ApiKeys

        setting = None if on_disconnect is None else OnDisconnect(on_disconnect)
        key, plaintext = ApiKeys(engine).create(name, tenant, admin, on_disconnect=setting)
    if as_json:
        told = {"id": key.id, "name": name, "tenant": tenant, "admin": admin, "on_disconnect": on_disconnect}
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
        names = ("id", "name", "tenant", "admin", "on_disconnect", "created_ms", "revoked_ms")
        print(json.dumps([{name: getattr(key, name) for name in names} for key in keys]))
        return
    for key in keys:
        made = datetime.fromtimestamp(key.created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        notes = ("admin" if key.admin else "", "revoked" if key.revoked_ms is not None else "")
        leaving = f"on-disconnect={key.on_disconnect}" if key.on_disconnect else ""
        print("  ".join(filter(None, (key.id, made, key.tenant, key.name, *notes, leaving))))


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
