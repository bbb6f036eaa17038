"""The one way in which texts are made comparable. ``docs/scorers.md`` tells it to users.

``normalise`` is for answers and targets alike: what it takes away can't decide whether an answer is right.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

#: Scripts whose words stand without spaces between them: Han, kana, Thai, Lao, Tibetan, Myanmar, Khmer.
UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
#: Words that are remembered without their punctuation: answers to one question say much the same ones.
WORDS = 2**16
#: Articles of English, passed over by F1 alone, as SQuAD does.
ARTICLES = frozenset({"a", "an", "the"})
#: Punctuation that means something at the end of a word: ``50%``, ``C#``, ``AT&T``, ``@name``, ``\\frac``.
MEANT = frozenset("%‰#&@\\")
#: Rounds until nothing changes any more; folding case can make what NFKC changes again.
ROUNDS = 8
#: Commands of LaTeX within each other that are unwrapped.
DEPTH = 20

_SUPERSCRIPTS = re.compile("[⁰¹²³⁴-⁹⁺⁻]+")
_AFTER_DIGIT = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")
_INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufe00-\ufe0f\ufeff™®©℠]")
_SIGNS = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63", "-")
    | dict.fromkeys("\u2014\u2015", " ")
    | dict.fromkeys("‘’‚‛′ʼ", "'")
    | dict.fromkeys("“”„‟″«»‹›", '"')
    | {"\u2044": "/", "\u2215": "/", "٫": ".", "٬": ",", "٪": "%"}
)
_FENCE = re.compile(r"(?m)^[ \t]*(?:`{3,}|~{3,})[^\n`]*$")
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3})([^\s*]+)\1")
_LATEX_SPACE = re.compile(r"\\[()\[\]]|\\[,;:! ]|\\quad\b")
_LATEX_ESCAPE = re.compile(r"\\([$%#&_{}])")
_LATEX_BOX = re.compile(r"\\(?:boxed|fbox|text(?:bf|it|rm)?|math(?:rm|bf|it)|emph)\s*\{", re.IGNORECASE)
_PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">"}
_PIECE = re.compile(f"[{UNSPACED}]|[^\\s{UNSPACED}]+")
_SPLITTER = re.compile(r"(?<!\d)[,;:!?\"()\[\]{}|/]|[,;:!?\"()\[\]{}|/](?!\d)")
_UNSPACED_CHARACTER = re.compile(f"[{UNSPACED}]")


def plain(text: str) -> str:
    """One spelling for what Unicode spells in several ways: NFKC, and beyond it superscripts (``x²`` is ``x^2``),
    fractions (``3½`` is ``3 1/2``), digits of any script as ASCII, one minus, one kind of quotes, nothing invisible."""
    if text.isascii():
        return text
    text = _AFTER_DIGIT.sub(" ", _INVISIBLE.sub("", text))
    text = _SUPERSCRIPTS.sub(lambda found: "^" + found[0], text)
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    return _OTHER_DIGIT.sub(lambda found: str(unicodedata.digit(found[0])), text)


def normalise(text: str) -> str:
    """``plain``, folded case, no markdown, no punctuation at the ends of words, single spaces.

    Diacritics, and minus signs and points of numbers, stay. Idempotent.
    """
    for _ in range(ROUNDS):
        before, text = text, _once(text)
        if text == before:
            break
    return text


def same(answer: str, target: str) -> bool:
    """Whether they are equal once normalised; of a target that has nothing but punctuation, as they are."""
    wanted = normalise(target)
    return normalise(answer) == wanted if wanted else answer.strip() == target.strip()


def tokens(text: str) -> list[str]:
    """The words of a text without articles, for F1; in scripts without spaces, its characters."""
    found: list[str] = []
    for piece in _PIECE.findall(normalise(text)):
        found += [word for part in _SPLITTER.split(piece) if (word := _trim(part)) and word not in ARTICLES]
    return found


def contains(text: str, words: str) -> bool:
    """Whether ``words`` stand in ``text``, both normalised, and not as a part of longer words or of other numbers."""
    if not words:
        return False
    start = text.find(words)
    while start >= 0:
        if _begins_word(text, start) and _ends_word(text, start + len(words)):
            return True
        start = text.find(words, start + 1)
    return False


def balanced(text: str, start: int) -> int | None:
    """Where the ``}`` is that closes what was opened just before ``start``; None where nothing does."""
    depth = 1
    for found in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return found.start()
    return None


def unwrapped(text: str, depth: int = DEPTH) -> str:
    """Without LaTeX's boxes and text commands (``\\boxed{x}`` is ``x``) and its escapes."""
    if "\\" not in text or not depth:
        return text
    parts: list[str] = []
    position = 0
    while found := _LATEX_BOX.search(text, position):
        end = balanced(text, found.end())
        if end is None:
            break
        parts += [text[position : found.start()], unwrapped(text[found.end() : end], depth - 1)]
        position = end + 1
    parts.append(text[position:])
    return _LATEX_ESCAPE.sub(r"\1", _LATEX_SPACE.sub(" ", "".join(parts)))


def is_unspaced(character: str) -> bool:
    return _UNSPACED_CHARACTER.match(character) is not None


def _once(text: str) -> str:
    text = plain(text).casefold()
    text = _EMPHASIS.sub(r"\2", unwrapped(_FENCE.sub("", text))).replace("`", "")
    return " ".join(word for part in text.split() if (word := _trim(part)))


@lru_cache(WORDS)
def _trim(word: str) -> str:
    """Without punctuation at its ends, but for brackets that the word itself opens and closes, and signs of numbers."""
    if not any(character not in "#-" and (not _is_punctuation(character)) for character in word):
        return ""
    while word:
        first, last = word[0], word[-1]
        closer = _PAIRS.get(first)
        opener = next((opener for opener, closer in _PAIRS.items() if closer == last), None)
        if closer is not None and closer == last and len(word) > 1:
            word = word[1:-1]
        elif closer is not None and word.count(first) > word.count(closer):
            word = word[1:]
        elif opener is not None and word.count(last) > word.count(opener):
            word = word[:-1]
        elif first == "$" and (last == "$" or not word[1:2].isdigit()):
            word = word[1:]
        elif last == "$":
            word = word[:-1]
        elif closer is None and _is_punctuation(first) and not _is_sign(word):
            word = word[1:]
        elif opener is None and _is_punctuation(last):
            word = word[:-1]
        else:
            break
    return word


def _is_sign(word: str) -> bool:
    """Whether a word begins with the minus or the point of a number (or of a term: ``-x`` is not ``x``)."""
    if word[0] == "-":
        return (
            word[1:2].isalnum()
            or word[1:2] in ("(", "$", "\\", "√")
            or (word[1:2] == "." and word[2:3].isdigit())
        )
    return word[0] == "." and word[1:2].isdigit()


def _is_punctuation(character: str) -> bool:
    return character not in MEANT and unicodedata.category(character)[0] == "P"


def _is_wordy(character: str) -> bool:
    """A letter, digit or mark of a script with spaces between its words."""
    if character.isalnum() or character == "_":
        return not is_unspaced(character)
    return unicodedata.category(character)[0] == "M" and not is_unspaced(character)


def _begins_word(text: str, start: int) -> bool:
    """Whether what begins at ``start`` is not in the middle of a word or number."""
    edge, before = text[start], text[start - 1] if start else " "
    if unicodedata.category(edge)[0] == "M":
        return False
    if _is_wordy(edge) and _is_wordy(before):
        return False
    if before == "'" and edge.isalpha() and start >= 2 and text[start - 2].isalpha():
        return False
    if edge.isdigit():
        earlier = text[start - 2] if start >= 2 else " "
        if before in ".,/" and (earlier.isdigit() or before == "."):
            return not (before != "/" or _is_fraction(text, start))
        return not (before == "-" and not earlier.isalnum())
    return True


def _ends_word(text: str, end: int) -> bool:
    edge, after, later = text[end - 1], text[end : end + 1], text[end + 1 : end + 2]
    if not after:
        return True
    if unicodedata.category(after)[0] == "M" or (_is_wordy(edge) and (_is_wordy(after) or after in "+#")):
        return False
    if after == "'" and edge.isalpha() and later.isalpha():
        return later == "s" and not text[end + 2 : end + 3].isalnum()
    if edge.isdigit() and later.isdigit() and after in ".,/":
        return after == "/" and not _is_fraction(text, end)
    return True


def _is_fraction(text: str, inside: int) -> bool:
    """Whether the word around a position is a fraction like ``1/2``, and not a date."""
    start, end = text.rfind(" ", 0, inside) + 1, text.find(" ", inside)
    return re.fullmatch(r"-?\d+/\d+", text[start : end if end >= 0 else None]) is not None
