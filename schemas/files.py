"""What files are for, and how long one may be kept."""

from __future__ import annotations

from enum import StrEnum


class Purpose(StrEnum):
    """As OpenAI has them. The last is the server's own."""

    BATCH = "batch"
    EVALS = "evals"
    USER_DATA = "user_data"
    BATCH_OUTPUT = "batch_output"


#: Those that an upload may say.
UPLOADABLE = (Purpose.BATCH, Purpose.EVALS, Purpose.USER_DATA)
#: The seconds that ``expires_after`` may say, from an hour to 30 days.
SHORTEST_LIFE, LONGEST_LIFE = 3600, 30 * 24 * 3600
