"""Tailrace, as its users hold it: a client that queues LLM completions and follows their chunk streams.

    async with tailrace.Client() as client:
        completion = await client.submit(model="smollm2", messages=[{"role": "user", "content": "Hello"}])
        async for chunk in completion.chunks():
            print(chunk.text, end="", flush=True)

It speaks HTTP alone and loads nothing of the server. ``SyncClient`` is the same without ``await``.
"""

from tailrace.batches import Batch
from tailrace.client import Client
from tailrace.errors import (
    APIError,
    CompletionCancelled,
    CompletionError,
    CompletionFailed,
    Conflict,
    ConnectionFailed,
    InvalidRequest,
    NotConfigured,
    NotFound,
    RateLimited,
    Restarted,
    TailraceError,
    Unauthenticated,
    Unavailable,
)
from tailrace.handles import Chunk, Completion, Status
from tailrace.sync import SyncBatch, SyncClient, SyncCompletion

__version__ = "0.1.0"

__all__ = [
    "APIError",
    "Batch",
    "Chunk",
    "Client",
    "Completion",
    "CompletionCancelled",
    "CompletionError",
    "CompletionFailed",
    "Conflict",
    "ConnectionFailed",
    "InvalidRequest",
    "NotConfigured",
    "NotFound",
    "RateLimited",
    "Restarted",
    "Status",
    "SyncBatch",
    "SyncClient",
    "SyncCompletion",
    "TailraceError",
    "Unauthenticated",
    "Unavailable",
    "__version__",
]
