"""What a person has, as lines of OpenAI's Batch format: rows of JSONL, CSV or Parquet, rendered one by one."""

from tailrace.batchinput.readers import InvalidRow, Source, read
from tailrace.batchinput.rendering import Rendered, Renderer

__all__ = ["InvalidRow", "Rendered", "Renderer", "Source", "read"]
