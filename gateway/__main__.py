"""``python -m gateway --host H --port P``: one gateway process, with its settings from the environment."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys

from gateway.context import open_context
from gateway.server import serve
from schemas.errors import TailraceError
from schemas.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gateway", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--log-level", default="warning")
    options = parser.parse_args()
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    settings = Settings()
    try:
        asyncio.run(_try(settings))
    except TailraceError as error:
        sys.exit(f"tailrace: {error}")
    serve(settings, host=options.host, port=options.port, log_level=options.log_level)


async def _try(settings: Settings) -> None:
    """Everything can be opened: so that what can't is one line, not a traceback of the server."""
    context = await open_context(settings)
    await context.close()


if __name__ == "__main__":
    main()
