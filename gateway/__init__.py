"""HTTP: plain ASGI, plain bytes on the hot path."""
