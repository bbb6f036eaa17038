"""JSON texts as no encoder would write them: strategies, and an independent reading of them.

``json_texts`` draws any JSON value in any spelling that RFC 8259 allows: escapes where none are needed, lone
surrogates, integers of any size, numbers beyond a double, duplicate names, spaces and line ends between tokens.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

_SHORT = {'"': '\\"', "\\": "\\\\", "/": "\\/", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}

spaces = st.sampled_from(["", "", "", "", " ", "\n", "\t \r\n"])

#: Characters that are worth a test, and any other.
characters = st.sampled_from('a"\\/\n\x00\x1f\x7f\u0085\u2028é中😀\ud800\udfff{}[]:,~') | st.characters(exclude_categories=())


@st.composite
def spelled(draw: st.DrawFn, text: str, *, mode: str | None = None) -> str:
    """``text`` as a JSON string: each character raw, by its short escape or by number, whichever comes."""
    mode = mode or draw(st.sampled_from(["raw", "escaped", "mixed"]))
    out: list[str] = []
    for character in text:
        choices = [_by_number(character)]
        if character in _SHORT:
            choices.insert(0, _SHORT[character])
        if character >= " " and character not in '"\\' and not "\ud800" <= character <= "\udfff":
            choices.insert(0, character)
        if mode == "raw":
            out.append(choices[0])
        elif mode == "escaped":
            out.append(choices[-1])
        else:
            out.append(draw(st.sampled_from(choices)))
    return '"' + "".join(out) + '"'


def _by_number(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02X}" for i in range(0, len(units), 2))


texts = st.text(characters, max_size=12)
string_texts = texts.flatmap(spelled)

_digits = st.integers(0, 10**6).map(str)
_exponents = st.tuples(st.sampled_from("eE"), st.sampled_from(["", "+", "-"]), st.integers(0, 400)).map(
    lambda t: "".join(map(str, t))
)
number_texts = st.one_of(
    st.integers().map(str),
    st.sampled_from([2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**40, -(10**400)]).map(str),
    st.sampled_from(["-0", "-0.0", "0.0", "1E2", "1e400", "-1.5e+4000", "1e-400", "1.0", "0.1", "9" * 30 + ".5"]),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.tuples(st.sampled_from(["", "-"]), _digits, st.just(".") | st.just(".0"), _digits, _exponents).map("".join),
)

_leaves = string_texts | number_texts | st.sampled_from(["null", "true", "false"])


@st.composite
def _arrays(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    items = draw(st.lists(inner, max_size=3))
    return "[" + ",".join(draw(spaces) + item + draw(spaces) for item in items) + "]"


@st.composite
def _objects(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    return object_text(draw, draw(st.lists(st.tuples(string_texts, inner), max_size=3)))


def object_text(draw: st.DrawFn, pairs: list[tuple[str, str]]) -> str:
    """An object of names and values that are JSON texts already."""
    fields = (draw(spaces) + name + draw(spaces) + ":" + draw(spaces) + value for name, value in pairs)
    return "{" + ",".join(fields) + draw(spaces) + "}"


json_texts: st.SearchStrategy[str] = st.recursive(_leaves, lambda inner: _arrays(inner) | _objects(inner), max_leaves=8)


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
        return not isinstance(a, bool | str) and not isinstance(b, bool | str) and Decimal(a) == Decimal(b)
    return type(a) is type(b) and (a == b) and str(a) == str(b)
