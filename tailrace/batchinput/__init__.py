"""What a person has, as lines of OpenAI's Batch format: rows read from JSONL, CSV or Parquet, and rendered one by one."""

from tailrace.batchinput.readers import InvalidRow, Source, read
from tailrace.batchinput.rendering import Rendered, Renderer

__all__ = ["InvalidRow", "Rendered", "Renderer", "Source", "read"]
