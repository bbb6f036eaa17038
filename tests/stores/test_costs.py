"""What completions cost in the books: every attempt, paid by the one that created the generation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, select

from schemas.prices import Prices
from schemas.providers import load_providers
from schemas.records import Attempted, Usage
from schemas.tables import attempts, usage
from stores.books import Books
from stores.migration import migrate
from stores.sql import make_engine, reading
from tests.support.entered import LOG, T0, accepted, contents, ended

TOML = """
default = "local"
[providers.local]
base_url = "http://127.0.0.1:1/v1"
prices = { smollm2 = { input = 1, output = 2, cached_input = 0.5 } }
[providers.other]
base_url = "http://127.0.0.1:2/v1"
"""
#: Of the answer that ``ended`` records: 7 prompt tokens, 2 of them cached, and 3 of the completion.
ANSWER = 5 * 1000 + 2 * 500 + 3 * 2000


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def books(engine: Engine) -> Books:
    return Books(engine, prices=Prices(load_providers(TOML, source="t").providers))


def past(number: int, provider: str = "local", prompt: int = 0, completion: int = 0) -> Attempted:
    return Attempted(
        number=number,
        provider=provider,
        model="smollm2",
        state="failed",
        usage=Usage(prompt_tokens=prompt, completion_tokens=completion),
        started_ms=T0,
        ended_ms=T0 + 1,
    )


def money(engine: Engine) -> dict[str, tuple[int | None, int | None]]:
    """completion → cost and what was saved."""
    with reading(engine) as connection:
        rows = connection.execute(select(usage.c.completion_id, usage.c.cost_nano, usage.c.saved_nano))
        return {row[0]: (row[1], row[2]) for row in rows}


def test_hits_and_joins_save_what_the_answer_cost(books: Books, engine: Engine) -> None:
    """Whether they come with the end or long after it."""
    books.apply([accepted("c1"), accepted("c2", "c1"), ended("c1")], {"c1": LOG})
    books.apply([accepted("c3", "c1", created_ms=T0 + 5_000, cache="hit")], {})
    assert money(engine) == {"c1": (ANSWER, 0), "c2": (0, ANSWER), "c3": (0, ANSWER)}


def test_every_attempt_is_paid(books: Books, engine: Engine) -> None:
    """Each has its cost in its own row; the one that joined saves but the answer's."""
    tries = [past(1, prompt=7, completion=1), past(2)]
    end = ended("c1", attempt=3, past=tries)
    books.apply([accepted("c1"), accepted("c2", "c1"), end], {"c1": LOG})
    assert money(engine) == {"c1": (9_000 + ANSWER, 0), "c2": (0, ANSWER)}
    with reading(engine) as connection:
        rows = connection.execute(select(attempts.c.number, attempts.c.cost_nano))
        assert dict(tuple(row) for row in rows) == {1: 9_000, 2: 0, 3: ANSWER}


def test_a_cost_of_which_a_part_is_unknown_is_unknown(books: Books, engine: Engine) -> None:
    """An attempt at a provider without prices counts, but for one that used nothing."""
    books.apply([accepted("c1"), ended("c1", attempt=2, past=[past(1, "other", prompt=1)])], {"c1": LOG})
    books.apply([accepted("c2"), ended("c2", attempt=2, past=[past(1, "other")])], {"c2": LOG})
    books.apply([accepted("c3"), accepted("c4", "c3"), ended("c3", provider="other")], {"c3": LOG})
    assert money(engine) == {"c1": (None, 0), "c2": (ANSWER, 0), "c3": (None, 0), "c4": (0, None)}


def test_prices_that_change_leave_what_is_entered(books: Books, engine: Engine) -> None:
    """The same records again, with other prices: nothing changes."""
    records = [accepted("c1", batch_id="batch_1"), ended("c1")]
    books.apply(records, {"c1": LOG})
    before = contents(engine)
    dearer = Prices(load_providers(TOML.replace("output = 2", "output = 9"), source="t").providers)
    Books(engine, prices=dearer).apply(records, {"c1": LOG})
    assert contents(engine) == before
    with reading(engine) as connection:
        assert connection.scalar(select(usage.c.batch_id)) == "batch_1"


def test_an_absurd_bill_is_a_number_that_sql_holds(books: Books, engine: Engine) -> None:
    """Thousands of attempts at the highest cost."""
    tries = [past(n, prompt=10**12, completion=10**12) for n in range(1, 2001)]
    end = ended("c1", attempt=2001, past=tries)
    books.apply([accepted("c1"), end], {"c1": LOG})
    ((cost, _),) = money(engine).values()
    assert cost is not None
    assert 10**16 < cost < 2**63
