"""Fixtures of the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.api import Api
from tests.support.stack import Stack
from tests.tailrace.batchcommand import Batch


@pytest.fixture
def settings(stack: Stack, api: Api) -> dict[str, str]:
    return {"URL": stack.url, "API_KEY": api.api_key}


@pytest.fixture
def batch(tmp_path: Path, settings: dict[str, str]) -> Batch:
    return Batch(tmp_path, settings)
