"""What both engines call right, so that their accuracies can be compared."""

from __future__ import annotations

import re
from typing import Any


def says(answer: str, text: str) -> bool:
    """Whether ``answer`` stands in ``text`` as a word of its own: 5 is not in 25 or in 1.5, and case doesn't matter."""
    alone = rf"(?<!\w)(?<!\d[.,]){re.escape(answer)}(?![.,]?\d)(?!\w)"
    return re.search(alone, text, re.IGNORECASE) is not None


def process_results(doc: dict[str, Any], results: list[str] | list[list[str]]) -> dict[str, float]:
    """lm-evaluation-harness's hook: one text, or the list of them that the filter ``take_first_k`` leaves."""
    (found,) = results
    texts = [found] if isinstance(found, str) else found
    return {"acc": sum(says(doc["answer"], text) for text in texts) / len(texts)}
