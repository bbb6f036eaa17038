"""Imports go one way; `make lint` checks the rest of the rules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOMS = ("schemas", "stores", "producers", "consumers", "workers", "gateway")
#: The project behind the application on the path, as when both are installed.
ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


def test_importing_tailrace_loads_no_other_room(tmp_path: Path) -> None:
    """So it lives beside an application that has a `schemas` of its own."""
    for room in ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text(f"OWNER = 'the application, {room}'\n")
    (tmp_path / "application.py").write_text(
        "import sys, tailrace, tailrace.client\n"
        f"rooms = [m for m in sys.modules if m.partition('.')[0] in {ROOMS!r}]\n"
        "assert not rooms, rooms\n"
        "import schemas\n"
        "assert schemas.OWNER == 'the application, schemas'\n"
    )
    done = subprocess.run(
        [sys.executable, "application.py"], cwd=tmp_path, capture_output=True, text=True, env=ENV
    )
    assert done.returncode == 0, done.stderr
