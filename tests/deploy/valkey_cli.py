"""A stand-in for ``valkey-cli -e COMMAND…``, as the health check calls it."""

from __future__ import annotations

import os
import sys

import redis

if __name__ == "__main__":
    option, *command = sys.argv[1:]
    assert option == "-e", option
    client = redis.Redis(port=int(os.environ["VALKEYCLI_PORT"]), password=os.environ["VALKEYCLI_AUTH"])
    try:
        print(client.execute_command(*command))
    except redis.RedisError as error:
        sys.exit(str(error))
