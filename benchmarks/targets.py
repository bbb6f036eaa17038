"""What Tailrace is to reach. Each is measured against something else in the same run, on the same machine."""

#: Streams a second at 100 at once: of the raw client's straight to the backend, and times LiteLLM's proxy.
OF_RAW = 0.5
OF_LITELLM, OF_LITELLM_NEXT = 10, 15
#: First chunk with nothing else to do, over direct: p50, in milliseconds.
FIRST_CHUNK_MS = 4
#: A chunk's delay over direct, with 20 paced streams, in milliseconds.
DELAY_P50_MS, DELAY_P99_MS = 3, 10
#: Redis memory of a 100-chunk log of one-token chunks, each an entry of its own: bytes a chunk.
LOG_BYTES = 60
#: Resuming in a log of 100,000 chunks: p50 to the first chunk, in milliseconds, wherever; and how far apart the fastest
#: and the slowest index may be to be called the same.
RESUME_MS, RESUME_SPREAD_MS = 5, 1.5
#: Adding up a month of a million usage records: median, in milliseconds.
USAGE_MS = {"SQLite": 1000, "PostgreSQL": 700}
#: Answers from the cache a second, by one gateway process.
HITS = 1_500
#: Rows of a batch a second, from the first byte of the upload to rows that can be sent; and what processes may need for
#: it beyond idle, whatever the size of the file, in MiB.
SUBMITTED = 10_000
BATCH_MIB = {"gateway": 100, "bulk": 150, "redis": 100, "command": 100}
#: Rows a second, times the streams of the SDK script.
OF_SDK, OF_SDK_NEXT = 3, 4
#: 100,000 rows that are cached, from ``in_progress`` to ``completed``, in seconds; and what one takes of all processes'
#: CPU from POST to output, in microseconds.
CACHED_SECONDS, CACHED_CPU = 20, 120
#: What 100,000 rows in the queue may add to an interactive request's first chunk, at the median, in milliseconds.
QUEUED_MS = 20
