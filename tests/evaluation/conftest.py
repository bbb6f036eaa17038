"""``tailrace eval`` as processes in a folder, before the session's stack."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api import Api
from tests.support.evaluating import Evaluation
from tests.support.stack import Stack

_numbers = itertools.count()


@pytest.fixture
def evaluation(tmp_path: Path, stack: Stack) -> Iterator[Evaluation]:
    """A tenant's own: its prompts begin with a word that no other test has."""
    with stack.api() as api:
        yield Evaluation(tmp_path, stack, {"URL": stack.url, "API_KEY": _key(api)}, f"q{next(_numbers)}x")


def _key(api: Api) -> str:
    return api.api_key
