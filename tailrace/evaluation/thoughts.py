"""Models that think aloud: what of a text is reasoning. Scorers are given what is left."""

from __future__ import annotations

import re

#: What a block is called, in any case.
TAGS = ("think", "thinking", "thought", "reasoning")

_TAG = "|".join(TAGS)
_THOUGHT = re.compile(rf"\s*<({_TAG})>(?P<thought>.*?)</\1>", re.DOTALL | re.IGNORECASE)
_OPEN_THOUGHT = re.compile(rf"\s*<(?:{_TAG})>(?P<thought>.*)", re.DOTALL | re.IGNORECASE)
#: The end of a thought that the chat template began: alone on its line.
_THOUGHT_ENDS = re.compile(rf"^[ \t]*</(?:{_TAG})>[ \t]*$", re.MULTILINE | re.IGNORECASE)


def split_thought(text: str) -> tuple[str, str | None]:
    """The answer and the reasoning of a text that has both: ``<think>…</think>``, or another tag, and the answer.

    Also where the chat template has opened the block and the text has but its end, alone on a line. A block without an
    end is all reasoning, and the answer is empty. Tags further on in an answer are part of it.
    """
    thoughts: list[str] = []
    rest = text
    while (block := _THOUGHT.match(rest)) is not None:
        thoughts.append(block["thought"].strip())
        rest = rest[block.end() :]
    if (unended := _OPEN_THOUGHT.match(rest)) is not None:
        thoughts.append(unended["thought"].strip())
        rest = ""
    elif not thoughts and (end := _THOUGHT_ENDS.search(rest)) is not None:
        thoughts.append(rest[: end.start()].strip())
        rest = rest[end.end() :]
    if not thoughts:
        return text, None
    return rest.strip(), "\n\n".join(filter(None, thoughts)) or None
