"""The scorer ``choice``: which option of a multiple-choice question does an answer name?"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from tailrace.errors import TailraceError
from tailrace.evaluation import suite
from tailrace.evaluation.scorers import letters as said_letters
from tailrace.evaluation.scorers.base import Each, said
from tailrace.evaluation.scorers.text import contains, normalise, same
from tailrace.evaluation.shapes import Answer, Item, Score

#: Stands for the letters of an option's own text, where that has single letters in it (``Vitamin C``).
MASK = "\ue000"
#: The longest text that is looked at, in characters: its end, where a longer one says what it concludes.
LONGEST = 20_000

#: Where a letter is said, and which letters are said there together.
_Statement = tuple[int, frozenset[str]]


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """The letters that an answer names: one, none, or several that it does not decide between."""

    letters: frozenset[str]
    why: str = ""


class Choice(Each):
    """1 where the answer names the target's option and no other."""

    def __init__(self, spec: suite.Choice) -> None:
        super().__init__(spec.label)
        self._spec = spec

    def one(self, answer: Answer) -> Score:
        options = options_of(self._spec, answer.item)
        letters = "".join(options) if options else self._spec.letters
        wanted = {target_letter(target, letters, options) for target in answer.item.targets}
        reading = read(said(answer), letters, options)
        named = " and ".join(sorted(reading.letters)) or None
        if len(reading.letters) != 1:
            why = f"names {named}, and not one of them" if named else "names no option"
            return Score(0.0, answer=named, explanation=why)
        if reading.letters <= wanted:
            return Score(1.0, answer=named, explanation=reading.why or None)
        right = " or ".join(sorted(letter for letter in wanted if letter))
        return Score(0.0, answer=named, explanation=f"{named} is not {right}")


def options_of(spec: suite.Choice, item: Item) -> dict[str, str]:
    """Letter → text of an item's options; empty where the suite names no column. Raises TailraceError.

    The column has a list, an object of letters, or ``{"label": […], "text": […]}``; in CSV, as JSON."""
    if spec.choices is None:
        return {}
    where = f"{spec.label}: item {item.id!r}: {spec.choices}"
    if spec.choices not in item.columns:
        raise TailraceError(f"{where}: the item has no such column")
    value = item.columns[spec.choices]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise TailraceError(f"{where}: must be a list of options, or an object of letters") from None
    if isinstance(value, Mapping):
        mapping = cast("Mapping[str, Any]", value)
        labels, texts = mapping.get("label"), mapping.get("text")
        if isinstance(labels, list) and isinstance(texts, list):
            mapping = dict(zip(cast("list[str]", labels), cast("list[Any]", texts), strict=False))
        options = {str(letter).strip().upper(): str(text) for letter, text in mapping.items()}
    elif isinstance(value, list | tuple):
        texts = cast("list[Any]", value)
        if len(texts) > len(spec.letters):
            raise TailraceError(f"{where}: has {len(texts)} options for {len(spec.letters)} letters")
        options = {letter: str(text) for letter, text in zip(spec.letters, texts, strict=False)}
    else:
        raise TailraceError(f"{where}: must be a list of options, or an object of letters")
    unknown = [letter for letter in options if letter not in spec.letters or len(letter) != 1]
    if unknown or not options:
        raise TailraceError(
            f"{where}: {unknown[0]!r} is none of the letters {spec.letters}"
            if unknown
            else f"{where}: is empty"
        )
    return options


def target_letter(target: str, letters: str, options: Mapping[str, str]) -> str | None:
    """The letter of a target, which is a letter itself (``B``, ``(b)``, ``B) Paris``) or an option's text."""
    alone = normalise(target).upper()
    if len(alone) == 1 and alone in letters:
        return alone
    found = [letter for letter, text in options.items() if same(target, text)]
    if len(found) == 1:
        return found[0]
    marked = re.match(r"\s*\(?([A-Z])[).:]\s", target)
    return marked[1] if marked and marked[1] in letters else None


def read(text: str, letters: str, options: Mapping[str, str] | None = None) -> Reading:
    """What an answer names. Whole statements (``the answer is B``) come before letters that merely stand there, and
    the last statement before those that it follows."""
    options = options or {}
    text = said_letters.readied(text[-LONGEST:])
    alone = said_letters.ALONE.fullmatch(text)
    if alone and alone["letter"].upper() in letters:
        return Reading(frozenset(alone["letter"].upper()))
    whole = frozenset(letter for letter, option in options.items() if same(text, option))
    if len(whole) == 1:
        return Reading(whole)
    masked = _masked(text, options)
    for statements in (_strong(text, masked, letters, options), _weak(masked, letters)):
        if statements:
            return Reading(max(statements, key=lambda statement: statement[0])[1])
    rest, rest_masked = text, masked
    for start, end in reversed(list(said_letters.listings(masked, letters, len(options) or None))):
        rest, rest_masked = rest[:start] + rest[end:], rest_masked[:start] + rest_masked[end:]
    return _lines(rest_masked, letters) or _mentions(rest, rest_masked, letters, options)


def _strong(text: str, masked: str, letters: str, options: Mapping[str, str]) -> list[_Statement]:
    """What says which option is the answer."""
    found = [
        statement
        for pattern in (said_letters.STRONG, said_letters.CORRECTION)
        for statement in _statements(pattern, masked, letters)
        if not _is_echo(statement[1], letters)
    ]
    found += _said_texts(text, options)
    last = masked.rfind("\n") + 1
    alone = said_letters.ALONE.fullmatch(masked, last)
    if last and alone and said_letters.is_letter(masked, alone, letters, said=True):
        found.append((alone.start("letter"), frozenset(alone["letter"].upper())))
    return found


def _weak(masked: str, letters: str) -> list[_Statement]:
    """What says that an option is right, or that it follows."""
    return [
        *_statements(said_letters.WEAK, masked, letters),
        *_statements(said_letters.JUDGED, masked, letters, capital=True),
        *_statements(
            said_letters.AFFIRMED, masked, letters, capital=True, named=said_letters.with_those_before
        ),
    ]


def _statements(
    pattern: re.Pattern[str],
    masked: str,
    letters: str,
    *,
    capital: bool = False,
    named: Callable[[str, re.Match[str], str], frozenset[str]] = said_letters.together,
) -> list[_Statement]:
    """Those of a kind that are neither denied nor under a condition; ``capital``: whose letter must be one."""
    return [
        (match.start("letter"), named(masked, match, letters))
        for match in _overlapping(pattern, masked)
        if said_letters.is_letter(masked, match, letters, said=not capital)
        and not said_letters.is_unsure(masked, match.start())
        and not said_letters.is_denied(masked, match)
    ]


def _overlapping(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """All matches, also those that begin inside of another one."""
    found: list[re.Match[str]] = []
    match = pattern.search(text)
    while match:
        found.append(match)
        match = pattern.search(text, match.start() + 1)
    return found


def _is_echo(named: frozenset[str], letters: str) -> bool:
    """Whether these are all letters, as in ``Answer: A, B, C or D``."""
    return len(named) >= len(letters) or (len(named) >= 4 and "".join(sorted(named)) == letters[: len(named)])


def _said_texts(text: str, options: Mapping[str, str]) -> list[_Statement]:
    """Options whose text follows ``the answer is``."""
    by_length = sorted(
        ((normalise(option), letter) for letter, option in options.items()), key=_length, reverse=True
    )
    longest = 2 * max((len(option) for option in options.values()), default=0) + 20
    found: list[_Statement] = []
    for match in said_letters.ANSWER_IS.finditer(text) if options else ():
        if said_letters.is_unsure(text, match.start()):
            continue
        clause = normalise(text[match.end() : match.end() + longest])
        # two characters more than the option show whether it ends there
        letter = next(
            (
                of
                for said, of in by_length
                if clause.startswith(said) and contains(clause[: len(said) + 2], said)
            ),
            None,
        )
        if letter is not None:
            found.append((match.end(), frozenset(letter)))
    return found


def _length(option: tuple[str, str]) -> int:
    return len(option[0])


def _lines(masked: str, letters: str) -> Reading | None:
    """What the first line says by its letter alone, or all lines that begin with the same one."""
    lines = [line for line in masked.split("\n") if line.strip()]
    if not lines:
        return None
    alone = said_letters.ALONE.fullmatch(lines[0])
    if alone and said_letters.is_letter(lines[0], alone, letters, said=True):
        return Reading(frozenset(alone["letter"].upper()))
    named: set[str] = set()
    for line in lines:
        match = said_letters.LEADING.match(line)
        if (
            match
            and said_letters.is_letter(line, match, letters, said=line is lines[0])
            and not said_letters.is_denied(line, match)
        ):
            named |= said_letters.together(line, match, letters)
    return Reading(frozenset(named)) if len(named) == 1 else None


def _mentions(rest: str, masked: str, letters: str, options: Mapping[str, str]) -> Reading:
    """The letters, else the texts of options, that are named anywhere and not denied."""
    named: set[str] = set()
    for match in said_letters.MENTIONED.finditer(masked):
        is_one = said_letters.is_letter(masked, match, letters, said=match["named"] is not None)
        if is_one and not said_letters.is_denied(masked, match):
            named.add(match["letter"].upper())
    return Reading(frozenset(named or _mentioned_texts(rest, options)))


def _mentioned_texts(text: str, options: Mapping[str, str]) -> set[str]:
    """Options whose texts stand in the answer; one within another that is there (``York`` in ``New York``) is not."""
    words = normalise(text)
    named: set[str] = set()
    for letter, option in sorted(options.items(), key=lambda option: -len(normalise(option[1]))):
        wanted = normalise(option)
        denied = re.search(
            rf"(?:\bnot|n't|\bnever|rather than|instead of)\s+(?:(?:the|an?)\s+)?{re.escape(wanted)}", words
        )
        if wanted and denied is None and contains(words, wanted):
            named.add(letter)
            words = words.replace(wanted, MASK)
    return named


def _masked(text: str, options: Mapping[str, str]) -> str:
    """A text of the same length, without the letters in texts of options that have single letters."""
    for option in options.values():
        if len(option.strip()) > 1 and re.search(r"(?<!\w)[A-Za-z](?!\w)", option):
            pattern = re.compile(rf"(?<!\w){re.escape(option.strip())}(?!\w)", re.IGNORECASE)
            text = pattern.sub(lambda match: MASK * len(match[0]), text)
    return text
