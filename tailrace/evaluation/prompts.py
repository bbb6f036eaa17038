"""Messages of an item: what a suite's prompt makes of it."""

from __future__ import annotations

from typing import Any

from tailrace.errors import TailraceError
from tailrace.evaluation.shapes import Item
from tailrace.evaluation.suite import Prompt
from tailrace.evaluation.templating import Template, variables
from tailrace.templating import Failed, Invalid


class Prompts:
    """A prompt, compiled. Raises TailraceError where one of its texts is no template."""

    def __init__(self, prompt: Prompt) -> None:
        self.name = prompt.name
        texts = [] if prompt.system is None else [("system", "system", prompt.system)]
        for n, shot in enumerate(prompt.few_shot):
            texts.append(("user", f"few_shot[{n}].user", shot.user))
            texts.append(("assistant", f"few_shot[{n}].assistant", shot.assistant))
        texts.append(("user", "template", prompt.template))
        self._parts = [(role, field, self._compiled(field, text)) for role, field, text in texts]

    def messages(self, item: Item) -> list[dict[str, Any]]:
        """System, few-shot pairs, question. Raises TailraceError with the template's field and the item, where one
        fails or gives a blank text."""
        values = variables(item)
        messages: list[dict[str, Any]] = []
        for role, field, template in self._parts:
            place = f"prompt {self.name!r}, {field}, item {item.id!r}"
            try:
                text = template.render(values)
            except Failed as error:
                raise TailraceError(f"{place}: {error}") from None
            if not text.strip():
                raise TailraceError(f"{place}: the text is blank")
            messages.append({"role": role, "content": text})
        return messages

    def _compiled(self, field: str, text: str) -> Template:
        try:
            return Template(text)
        except Invalid as error:
            raise TailraceError(f"prompt {self.name!r}, {field}: {error}") from None
