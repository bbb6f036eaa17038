"""LiteLLM's proxy beside Tailrace: one process, in an environment of its own that is made once, without telemetry."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from benchmarks.jobs import Target
from benchmarks.stack import Stack, kept_folder
from tests.support.ports import free_port

#: An exact version, with dependencies no newer than it: 1.82.7, 1.82.8 and, some days after this one, 1.107.0 carried
#: malware on PyPI. Look before you raise it.
VERSION, PUBLISHED = "1.106.0", "2026-10-19"


class NoProxy(Exception):
    """LiteLLM can't be installed or started here; one line says why."""


def install() -> Path:
    """The environment's folder, made if it isn't there. Wheels only: nothing of it runs before it is started. Raises
    NoProxy."""
    environment = kept_folder() / f"litellm-{VERSION}"
    done = environment / ".done"
    if done.exists():
        return environment
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise NoProxy("there is no uv to install it with")
    python = environment / "bin" / "python"
    _run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment))
    requirement = f"litellm[proxy]=={VERSION}"
    options = ["--quiet", "--only-binary", ":all:", "--exclude-newer", PUBLISHED, "--python", str(python)]
    _run(uv, "pip", "install", *options, requirement)
    done.touch()
    return environment


def _run(*command: str) -> None:
    ran = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if ran.returncode:
        lines = ran.stderr.strip().splitlines() or ["it said nothing"]
        raise NoProxy(f"{' '.join(command[1:3])} failed: {lines[-1].strip()[:300]}")


class Proxy:
    """The proxy on the stack's backend, running. Raises NoProxy."""

    def __init__(self, stack: Stack) -> None:
        environment = install()
        port, key = free_port(), f"sk-{secrets.token_urlsafe(32)}"
        url = f"http://127.0.0.1:{port}"
        home = stack.folder / "litellm"
        home.mkdir()
        config = home / "config.yaml"
        config.write_text(json.dumps(_config(stack.backend_url, key)))  # JSON is YAML too
        command = [str(environment / "bin" / "litellm"), "--config", str(config), "--telemetry", "False"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        self.target = Target(
            "litellm", f"{url}/v1/chat/completions", "fake", {"authorization": f"Bearer {key}"}
        )
        self._server = stack.server("litellm", command, _environment(home))
        try:
            self._server.wait_until(lambda: _lives(url))
        except RuntimeError as error:
            raise NoProxy(str(error)) from None

    def stop(self) -> None:
        self._server.stop()


def _config(backend_url: str, key: str) -> dict[str, Any]:
    served = {"model": "openai/fake", "api_base": backend_url, "api_key": "none"}
    return {
        "model_list": [{"model_name": "fake", "litellm_params": served}],
        "litellm_settings": {"telemetry": False, "num_retries": 0},
        "general_settings": {"master_key": key},  # it won't start without one
    }


def _environment(home: Path) -> dict[str, str]:
    """Nothing of ours or the user's: no key, no home, and nothing for it to fetch."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TZ")}
    return kept | {
        "HOME": str(home),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "DISABLE_ADMIN_UI": "True",
    }


def _lives(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/liveliness", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
