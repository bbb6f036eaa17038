"""The migrations lead to the tables that the code knows, and back, on both databases."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

from schemas.errors import ConfigurationError
from schemas.tables import metadata
from stores.migration import (
    alembic_config,
    check_schema,
    current_revision,
    downgrade,
    head_revision,
    migrate,
)
from stores.sql import make_engine, reading, writing

ROOT = Path(__file__).parents[2]
MIGRATE = "import sys; from stores.migration import migrate; migrate(sys.argv[1])"


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


def differences(engine: Engine) -> list[Any]:
    with reading(engine) as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return compare_metadata(context, metadata)


def test_migrated_tables_are_those_of_the_code(engine: Engine) -> None:
    assert differences(engine), "the comparison sees tables that are not there"
    migrate(engine)
    assert differences(engine) == []
    inspector = inspect(engine)
    for table in metadata.sorted_tables:
        keys = inspector.get_foreign_keys(table.name)
        assert [key.get("options") for key in keys] == [{"ondelete": "CASCADE"} for _ in table.foreign_keys]


def test_every_revision_can_be_taken_back_and_made_again(engine: Engine) -> None:
    revisions = [each.revision for each in ScriptDirectory.from_config(alembic_config()).walk_revisions()]
    revisions.reverse()
    for before, after in zip(["base", *revisions], revisions, strict=False):
        migrate(engine, after)
        downgrade(engine, before)
        migrate(engine, after)
        assert current_revision(engine) == after
    downgrade(engine)
    assert current_revision(engine) is None
    assert inspect(engine).get_table_names() == ["alembic_version"]
    migrate(engine)
    assert differences(engine) == []


def test_migrating_again_changes_nothing(engine: Engine) -> None:
    migrate(engine)
    with writing(engine) as connection:
        connection.execute(
            text(
                "INSERT INTO api_keys (id, tenant, name, hash, admin, created_ms) VALUES ('k','t','n','h',true,1)"
            )
        )
    migrate(engine)
    with reading(engine) as connection:
        assert connection.scalar(text("SELECT count(*) FROM api_keys")) == 1


def test_processes_that_migrate_at_once_all_succeed(database_url: str, engine: Engine) -> None:
    command = [sys.executable, "-W", "error", "-c", MIGRATE, database_url]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)]
    errors = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4, "\n".join(errors)
    check_schema(engine)


def test_a_migration_that_fails_leaves_nothing_behind(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(text("CREATE TABLE usage (x INTEGER)"))
    with pytest.raises(Exception, match="usage"):
        migrate(engine)
    assert inspect(engine).get_table_names() == ["usage"]
    assert current_revision(engine) is None


def test_a_database_behind_the_code_is_told_to_migrate(engine: Engine) -> None:
    with pytest.raises(ConfigurationError, match="tailrace migrate"):
        check_schema(engine)
    migrate(engine)
    check_schema(engine)
    assert current_revision(engine) == head_revision()


def test_a_database_ahead_of_the_code_is_left_alone(engine: Engine) -> None:
    migrate(engine)
    with writing(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for attempt in (check_schema, migrate, downgrade):
        with pytest.raises(ConfigurationError, match="9999"):
            attempt(engine)


def test_sqlite_enforces_foreign_keys_again_after_a_migration(sqlite_url: str) -> None:
    engine = make_engine(sqlite_url)
    migrate(engine)
    with reading(engine) as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 10_000
    engine.dispose()
