"""Whether the storage of files is there, and is theirs: for `tailrace doctor`."""

from __future__ import annotations

from sqlalchemy.exc import SQLAlchemyError

from schemas.errors import ConfigurationError
from schemas.ids import new_file_id
from schemas.settings import Settings
from stores.files import Files
from stores.health import PATIENCE, Finding, fail, ok
from stores.sql import make_engine
from stores.storage import Storage, open_storage

_ADVICE = "Set TAILRACE_FILES to the storage that gateways and workers share."


def files(settings: Settings) -> list[Finding]:
    """Blocks."""
    try:
        storage = open_storage(settings)
        try:
            storage.size(new_file_id())
        except FileNotFoundError:
            pass  # as of any id that is new
        elsewhere = _elsewhere(settings, storage)
    except (ConfigurationError, OSError) as error:
        return [fail("files", str(error), _ADVICE)]
    if elsewhere:
        return [fail("files", f"{storage.place} has none of the files that the database knows", _ADVICE)]
    return [ok("files", storage.place)]


def _elsewhere(settings: Settings, storage: Storage) -> bool:
    """False also where the database doesn't answer, which is a finding of its own."""
    try:
        engine = make_engine(settings.database_url, statement_seconds=PATIENCE)
    except ConfigurationError:
        return False
    try:
        return Files(engine).are_elsewhere(storage)
    except SQLAlchemyError:
        return False
    finally:
        engine.dispose()
