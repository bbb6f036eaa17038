"""Numbers in texts: which there are, and which of them a text gives as its answer.

``1,000`` has thousands, ``1,5`` a decimal comma; ``docs/scorers.md`` has the whole table.
"""

from __future__ import annotations

import dataclasses
import decimal
import re
from decimal import Decimal

from tailrace.evaluation.scorers.text import balanced, plain

#: Digits that a quotient or a power is worked out to. Sums and differences are exact at that length.
PRECISION = 60
#: The largest exponent of a power that is worked out: ``2^10`` is 1024.
LARGEST_EXPONENT = 10_000
#: Characters after ``answer`` in which its ``is`` or ``:`` must come.
MARK = 80
#: Characters after a mark in which its number must come, and how many marks are looked at, from the last one on.
REACH = 500
MARKS = 20
#: A share that makes up for rounding, and for no more: whole numbers must then be the same.
ROUNDING = 1e-9

CONTEXT = decimal.Context(
    prec=PRECISION, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[], rounding=decimal.ROUND_HALF_EVEN
)


@dataclasses.dataclass(frozen=True, slots=True)
class Number:
    """``text`` as it stands there, from ``start`` to ``end``. ``minor``: an ordinal, or the mark of a list."""

    value: Decimal
    text: str
    start: int
    end: int
    minor: bool = False


_SPACED_GROUP = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_LATEX_GROUP = re.compile(r"(?<=\d)(?:\{,\}|,?\\[,!; ]|\\thinspace\s?|')(?=\d{3}(?!\d))")
_LATEX_NOISE = re.compile(r"\\(?:left|right|displaystyle)\b|\\(?=[$%])")
_TIMES = re.compile(r"\\(?:times|cdot)\b|[×·⋅]")

_DIGITS = (
    r"(?:(?<!\d,)\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!,?\d)"  # 1,234.50
    r"|(?<!\d,)\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?(?!,?\d)"  # 12,34,567
    r"|\d{1,3}(?:\.\d{3})+,\d+(?![.,]?\d)"  # 1.234,50
    r"|\d{1,3}(?:\.\d{3}){2,}(?![.,]?\d)"  # 1.234.567
    r"|\d{1,3}(?:_\d{3})+"
    r"|\d{1,3}(?:\ \d{3}){0,6}\ 0\d\d(?:\ \d{3}){0,6}(?:[.,]\d+)?(?!\ ?\d)"  # 12 000: no number begins with a 0
    r"|(?<!\d,)\d+,\d+(?![.,]?\d)"  # 1,5
    r"|\d+(?:\.\d+)?|\.\d+)"
)
_NUMBER = re.compile(
    rf"""
    (?P<passed>\d+(?:\.\d+){{2,}}(?!\d)(?<!\.\d\d\d)      # 1.2.3, 192.168.0.1
      | \d{{4}}-\d\d?-\d\d?(?!\d) | \d+/\d+/\d+           # dates
      | \d+(?::\d\d)+(?!\d)                               # times
      | 0[xX][0-9a-fA-F]+\b)
    | (?P<sign>[-+]?)(?P<currency>(?:[$€£¥₹]\s?)?)(?P<inner>[-+]?)
      (?: (?P<whole>\d+)?\s*\\[dtc]?frac\s*
          (?:\{{\s*(?P<up>-?\d+)\s*\}}\s*\{{\s*(?P<down>\d+)\s*\}}|(?P<up1>\d)\s*(?P<down1>\d))
        | (?:(?P<units>\d+)\ )?(?P<over>\d+)\s?/\s?(?P<under>\d+)(?![.,]?\d|\s?/)
        | (?P<digits>{_DIGITS}) (?:[eE](?P<exponent>[-+]?\d+)(?!\w))?
          (?:\s?(?:\*|x|✕)\s?10\s?(?:\^|\*\*)\s?\{{?(?P<ten>[-+]?\d+)\}}?)?
          (?:(?:\^|\*\*)\s?\{{?(?P<power>[-+]?\d+)\}}?(?!\d))?
      )
    """,
    re.VERBOSE,
)
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b", re.IGNORECASE)
_LIST_MARK = re.compile(r"[.)]\s+\S")
_NEGATING = re.compile(r"(?:[=:(\[{≈<>*×]|\b(?:is|equals|minus|be|are|to))[ \t*_]*$", re.IGNORECASE)
_ANSWER = re.compile(
    rf"\b(?:answer|result|solution)\b[^.\n:=]{{0,{MARK}}}?(?:\bis\b|\bequals\b|[:=]|≈)(?!\s*not\b|n't)|"
    rf"\banswer(?=[\s*_]*[$\d-])|(?:答案|答え)[是为為は:]?:?|\b(?:antwort|respuesta|réponse|risposta|resposta)\b"
    rf"[^.\n:]{{0,{MARK}}}?(?:\b(?:ist|es|est|è|é)\b|:)",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"[.;!?](?=\s|$)|\n|,?\s(?:because|since|as|so|where|which)\b|,\s(?=[a-z])", re.IGNORECASE
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_HASHES = re.compile(r"####[^\n]*")


def numbers(text: str) -> list[Number]:
    """All numbers of a text, in order. Versions, dates, times and digits within words are none; nor are subscripts."""
    return _numbers(_readied(text))


def final(text: str) -> Number | None:
    """The number that a text gives as its answer: in the last ``\\boxed{}``, after the last ``####``, after the last
    ``answer is`` or ``answer:``; without such marks the last one. None where there is no number."""
    text = _readied(text)
    for found in _from_the_last(_BOX, text):
        inside = text[found.end() : found.end() + REACH]
        if (number := _concluding(inside[: balanced(inside, 0)])) is not None:
            return number
    for found in _from_the_last(_HASHES, text):
        if (number := _concluding(found[0][:REACH])) is not None:
            return number
    for found in _from_the_last(_ANSWER, text):
        if (number := _marked(text[found.end() : found.end() + REACH])) is not None:
            return number
    return _last(_numbers(text))


def target(text: str) -> Decimal | None:
    """The value of a target: a text with one number, or with one that is marked as final. None where it is neither."""
    found = [number for number in numbers(text) if not number.minor] or numbers(text)
    marked = _BOX.search(text) or _HASHES.search(text) or _ANSWER.search(text)
    number = final(text) if marked or len(found) == 1 else None
    return number.value if number is not None else None


def is_near(value: Decimal, wanted: Decimal, *, tolerance: float, relative: float) -> bool:
    """Whether they differ by no more than ``tolerance``, or by no more than ``relative`` of ``wanted``. Between whole
    numbers a ``relative`` of up to ``ROUNDING`` counts for nothing: they have not been rounded."""
    if relative <= ROUNDING and _is_whole(value) and _is_whole(wanted):
        relative = 0.0
    apart = CONTEXT.abs(CONTEXT.subtract(value, wanted))
    share = CONTEXT.multiply(Decimal(repr(relative)), CONTEXT.abs(wanted))
    return apart <= Decimal(repr(tolerance)) or apart <= share


def _from_the_last(mark: re.Pattern[str], text: str) -> list[re.Match[str]]:
    return list(mark.finditer(text))[: -MARKS - 1 : -1]


def _is_whole(value: Decimal) -> bool:
    return not value.is_zero() and CONTEXT.is_normal(value) and value == value.to_integral_value()


def _readied(text: str) -> str:
    text = _SPACED_GROUP.sub(",", text)
    text = _TIMES.sub("*", plain(text))
    return _LATEX_NOISE.sub("", _LATEX_GROUP.sub(",", text))


def _numbers(text: str) -> list[Number]:
    found: list[Number] = []
    position = 0
    while match := _NUMBER.search(text, position):
        number = None if match["passed"] else _read(text, match)
        position = max(match.end(), match.start() + 1)
        if number is not None:
            found.append(number)
            position = number.end
    return found


def _read(text: str, match: re.Match[str]) -> Number | None:
    start, sign = match.start(), match["sign"] or match["inner"]
    before = text[:start][-24:]
    if match["sign"] and before[-1:].isalnum():  # 3-5, COVID-19
        if before[-1].isalpha():
            return None
        sign = match["inner"]
    elif not match["sign"] and not match["currency"] and _is_inside(before):
        return None
    if not sign and re.search(
        r"-\s+$", before
    ):  # "- 5": a minus after "=", the mark of a list at a line's beginning
        ahead = before.rstrip()[:-1]
        sign = "-" if _NEGATING.search(ahead) else ""
    end = match.end()
    value: Decimal | None
    if match["digits"] is None:
        value = _fraction(match)
        if value is None:  # 5/0: two numbers, of which this is the first
            end = match.end("over") if match["over"] else match.end()
            value = Decimal(match["over"]) if match["over"] else None
            if match["units"]:
                value, end = Decimal(match["units"]), match.end("units")
        if value is None:
            return None
    elif _is_list(text, match):
        first = match["digits"].split(",")[0]
        value, end = Decimal(first), match.start("digits") + len(first)
    else:
        value = _decimal(match)
    if not value.is_finite():
        return None
    if sign == "-":
        value = -value
    minor = bool(_ORDINAL.match(text, end)) or (
        bool(_LIST_MARK.match(text, end)) and not before.rpartition("\n")[2].strip(" *_#>")
    )
    return Number(value, text[start:end].strip(), start, end, minor)


def _is_inside(before: str) -> bool:
    """Whether digits after this are a part of a word, a subscript or an exponent of something that is no number."""
    last = before[-1:]
    if last.isalpha() and last.isascii():
        return True
    if last == "_" and (before[-2:-1].isalnum() or before[-2:-1] in ("}", ")")):
        return True
    return last == "^" or (before[-2:] in ("^{", "_{", "**") and before[-3:-2].isalnum())


def _is_list(text: str, match: re.Match[str]) -> bool:
    """``(3,4)`` and ``[3,4]`` are pairs, not numbers with a decimal comma."""
    digits = match["digits"]
    if not re.fullmatch(r"\d+,\d+", digits) or re.fullmatch(r"[1-9]\d{0,2},\d{3}", digits):
        return False
    start, end = match.start("digits"), match.end("digits")
    return text[start - 1 : start] in ("(", "[", "{") and start > 0 and text[end : end + 1] in (")", "]", "}")


def _decimal(match: re.Match[str]) -> Decimal:
    digits = match["digits"].replace("_", "").replace(" ", "")
    if re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}", digits):
        digits = digits.replace(".", "").replace(",", ".")
    elif re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d+)?", digits):
        digits = digits.replace(",", "")
    else:
        digits = digits.replace(",", ".", 1).replace(",", "")
    value = Decimal(digits)
    for shift in (match["exponent"], match["ten"]):
        if shift:
            value = CONTEXT.scaleb(value, Decimal(shift)) if len(shift) < 12 else Decimal("NaN")
    if match["power"] and abs(int(match["power"][:9])) <= LARGEST_EXPONENT:
        value = CONTEXT.power(value, int(match["power"][:9]))
    return value


def _fraction(match: re.Match[str]) -> Decimal | None:
    """None where the denominator is zero."""
    up = match["over"] or match["up"] or match["up1"]
    down = match["under"] or match["down"] or match["down1"]
    whole = match["units"] or match["whole"]
    if not Decimal(down):
        return None
    value = CONTEXT.divide(Decimal(up), Decimal(down))
    return CONTEXT.add(Decimal(whole), value) if whole else value


def _marked(rest: str) -> Number | None:
    """The number that follows a mark like ``Answer:``, in its clause or, where that is empty, on the next line."""
    rest = ":" + rest
    stripped = rest.lstrip(" \t\r\n*_:$`>\"'([")
    lead = len(rest) - len(stripped)
    number = next(iter(_numbers(rest[:lead] + stripped[:200])), None)
    end = _CLAUSE.search(rest, max(lead, 0))
    clause = rest[: end.start() if end is not None else None]
    if number is None or number.start >= len(clause):
        return None
    return _concluding(clause) if "=" in clause else number


def _concluding(text: str) -> Number | None:
    """Of a statement, the number after its last ``=`` (of ``42 = 6 × 7`` the one before), else the last one."""
    found = _numbers(text)
    sign = text.rfind("=")
    before = [number for number in found if number.start < sign]
    after = [number for number in found if number.start > sign]
    if sign < 0 or not after:
        return _last(found)
    return before[0] if len(after) > 1 and len(before) == 1 else after[0]


def _last(found: list[Number]) -> Number | None:
    return next((number for number in reversed(found) if not number.minor), found[-1] if found else None)
