"""JSON texts as no encoder would write them: strategies, and an independent reading of them.

``json_texts`` draws any JSON value in any spelling that RFC 8259 allows: escapes where none are needed, lone
surrogates, integers of any size, numbers beyond a double, duplicate names, spaces and line ends between tokens.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

_SHORT = {
    '"': '\\"',
    "\\": "\\\\",
    "/": "\\/",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
}

#: For ``spell``: as short as it can be, and nothing but ``\\uXXXX``.
RAW, BY_NUMBER = b"\x00", b"\x01"

spaces = st.sampled_from(["", "", "", "", " ", "\n", "\t \r\n"])

#: Characters that are worth a test, and any other.
characters = st.sampled_from('a"\\/\n\x00\x1f\x7f\u0085\u2028é中😀\ud800\udfff{}[]:,~') | st.characters(
    exclude_categories=()
)


def spell(text: str, how: bytes) -> str:
    """``text`` as a JSON string, each character raw, by its short escape or by number, as the bytes of ``how`` say."""
    out: list[str] = []
    for place, character in enumerate(text):
        ways = [_by_number(character)]
        if character in _SHORT:
            ways.append(_SHORT[character])
        if character >= " " and character not in '"\\' and not "\ud800" <= character <= "\udfff":
            ways.append(character)
        out.append(ways[how[place % len(how)] % len(ways) - 1])
    return '"' + "".join(out) + '"'


#: Ways to spell a text: as most encoders do, all by number, or any mixture.
spellings = st.sampled_from([RAW, BY_NUMBER]) | st.binary(min_size=4, max_size=8)


def _by_number(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02X}" for i in range(0, len(units), 2))


texts = st.text(characters, max_size=12)
string_texts = st.builds(spell, texts, spellings)

_digits = st.integers(0, 10**6).map(str)
_exponents = st.tuples(st.sampled_from("eE"), st.sampled_from(["", "+", "-"]), st.integers(0, 400)).map(
    lambda t: "".join(map(str, t))
)
number_texts = st.one_of(
    st.integers().map(str),
    st.sampled_from([2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**40, -(10**400)]).map(str),
    st.sampled_from(
        ["-0", "-0.0", "0.0", "1E2", "1e400", "-1.5e+4000", "1e-400", "1.0", "0.1", "9" * 30 + ".5"]
    ),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.tuples(st.sampled_from(["", "-"]), _digits, st.just(".") | st.just(".0"), _digits, _exponents).map(
        "".join
    ),
)

_leaves = string_texts | number_texts | st.sampled_from(["null", "true", "false"])


def array_text(items: list[str], space: str = "") -> str:
    """A list of items that are JSON texts already."""
    return "[" + ",".join(space + item + space for item in items) + "]"


def object_text(pairs: list[tuple[str, str]], space: str = "") -> str:
    """An object of names and values that are JSON texts already."""
    return "{" + ",".join(f"{space}{name}{space}:{space}{value}{space}" for name, value in pairs) + "}"


def _containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.lists(st.tuples(string_texts, inner), max_size=3)
    return st.builds(array_text, st.lists(inner, max_size=3), spaces) | st.builds(object_text, pairs, spaces)


json_texts: st.SearchStrategy[str] = st.recursive(_leaves, _containers, max_leaves=8)


def read(text: str | bytes) -> Any:
    """What a JSON text means: ``json.loads``, with a Decimal for what a double can't hold."""
    return json.loads(text, parse_float=_number)


def _number(text: str) -> float | Decimal:
    value = float(text)
    return value if abs(value) != float("inf") else Decimal(text)


def same(a: Any, b: Any) -> bool:
    """Equal values of equal types at every depth; a number that no double can hold may be an integer or a Decimal."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Decimal) or isinstance(b, Decimal):
        numbers = isinstance(a, int | Decimal) and isinstance(b, int | Decimal)
        return numbers and not isinstance(a, bool) and not isinstance(b, bool) and a == b
    return type(a) is type(b) and (a == b) and str(a) == str(b)
