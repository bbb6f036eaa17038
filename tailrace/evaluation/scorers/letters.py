"""Letters of a multiple-choice question in a text: where they are said, and where they are only letters.

Patterns work on a text made plain by ``readied``. Each gives its letter in the group ``letter``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tailrace.evaluation.scorers.text import balanced, plain, unwrapped

#: Characters of a sentence between ``answer`` and its ``is``.
REACH = 80
#: Characters before a statement in which a ``not`` or an ``if`` changes what it says.
CONTEXT = 60

_BEFORE = r"(?<![A-Za-z0-9À-ɏ_°])(?<![A-Za-z0-9À-ɏ]['-])(?<![A-Za-z]\.)"
_AFTER = r"(?![A-Za-z0-9À-ɏ_+#°]|'[A-Za-z]|-[A-Za-z]|\.[A-Za-z])"
LETTER = rf"{_BEFORE}(?P<letter>[A-Za-z]){_AFTER}"
_CAPITAL = rf"{_BEFORE}(?-i:[A-Z]){_AFTER}"
#: What may stand between ``is`` and the letter.
_FILL = (
    r"(?:\b(?:either|both|probably|likely|most|definitely|clearly|certainly|indeed|therefore|thus|simply|just|the|"
    r"option|choice|letter|answer|number|statement|be|actually|still|now|about)\b|[\s\"'(\[{<$:*_]){0,40}+"
)
#: What may follow a letter that ends a statement.
_ENDED = (
    r"(?=[\"')\]}>*]*\s*(?:$|[.,;:!?)(\n-]|\b(?:because|since|as|for|due|given|so|it\s+is|"
    r"is\s+(?:the\s+)?(?:correct|right|best|answer|it))\b))"
)
_RIGHT = r"(?:correct|right|true|best|accurate|answer|one|choice|option|winner|yes|✓|✔|✅)"

#: Statements that say which letter is the answer: the last of them is it.
STRONG = re.compile(
    rf"""(?:
      \b(?:answer|choice|option|response|selection|solution|pick|verdict|conclusion|result)s?\b
        [^.\n:;?!]{{0,{REACH}}}?
        (?:\b(?:is|are|was|would\s+be|should\s+be|must\s+be|has\s+to\s+be|will\s+be|remains)\b|[:=]|->|=>)
    | \banswer(?=\s*["'(\[]*{_CAPITAL})
    | \b(?:i(?:'d|'ll|'m|\s+would|\s+will|\s+am)?|let's|let\s+us|we)\s+
        (?:(?:have\s+to|would|will|definitely|probably|therefore|must|now|still)\s+)*
        (?:choose|chose|pick|select|say|vote\s+for|opt\s+for|guess|go(?:ing)?\s+(?:with|for)|lean(?:ing)?\s+(?:towards?|to)|
          believe|think|answer|settle\s+on|stick(?:ing)?\s+with|choosing|selecting|picking)\b
        (?:\s+that\b)?(?:\s+(?:it|this|the\s+answer)(?:'s|\s+is|\s+must\s+be|\s+should\s+be))?
    | (?:答案|答え)\s*(?:是|为|為|は|应该是)?\s*[:]?
    | \b(?:antwort|respuesta|réponse|risposta|resposta)\b[^.\n:]{{0,{REACH}}}?(?:\b(?:ist|es|est|è|é)\b|:)
    ){_FILL}{LETTER}""",
    re.IGNORECASE | re.VERBOSE,
)
#: Statements that take another one back.
CORRECTION = re.compile(
    rf"(?:\bno\b(?=\s*[,.;:!-])|\b(?:wait|actually|rather|instead|correction|sorry|hmm|scratch\s+that|i\s+mean|make\s+that|"
    rf"on\s+second\s+thoughts?)\b)"
    rf"(?:[\s,.:;!-]|\b(?:no|wait|actually|it's|it\s+is|it\s+should\s+be|it\s+must\s+be|rather|make\s+that|i\s+mean|that's|"
    rf"option|choice|should\s+be|must\s+be)\b|[\"'(\[]){{0,40}}+{LETTER}{_ENDED}",
    re.IGNORECASE,
)
#: Statements that count where nothing stronger is said.
WEAK = re.compile(
    rf"(?:\b(?:so|therefore|thus|hence|consequently|finally|ultimately|overall|it's|it\s+is|that's|that\s+is|this\s+is|"
    rf"must\s+be|should\s+be|has\s+to\s+be|can\s+only\s+be)\b,?|->|=>|→|∴){_FILL}{LETTER}{_ENDED}",
    re.IGNORECASE,
)
AFFIRMED = re.compile(
    rf"{LETTER}[)\]}}\"'.]*\s*(?:(?:is|are|was|would\s+be|seems|looks|must\s+be|should\s+be|appears(?:\s+to\s+be)?)\s+"
    rf"(?:(?:the|most|also|clearly|definitely|indeed|probably|therefore|thus|only|my|a)\s+)*{_RIGHT}(?!\w)|"
    rf"it\s+is\b|[-:(]*\s*(?:correct\b|right\b|✓|✔|✅))",
    re.IGNORECASE,
)
#: A line of a list that judges its own option: ``B) London - correct``.
JUDGED = re.compile(
    rf"(?m)^[^\w\n]*+{LETTER}[).:]\s*\S[^\n]*?[-:(,.]\s*(?:(?:this|that|it)(?:'s|\s+is)\s+)?(?:the\s+)?{_RIGHT}(?!\w)",
    re.IGNORECASE,
)
#: A line that begins as a list of options does.
MARKED = re.compile(rf"(?m)(?:^|(?<=\s))[(\[]?{_BEFORE}(?P<letter>[A-Z])[).:\]]+(?=\s|$)")
ALONE = re.compile(rf"\W*+(?:(?:option|choice|answer|letter)\s+)?\W*+{LETTER}\W*+", re.IGNORECASE)
LEADING = re.compile(
    rf"\W*+(?:(?:option|choice|answer|letter)\s+)?[(\[\"']*{LETTER}(?=[)\]\"']*(?:[).:,;]|\s*$|\s*\n|\s+-|\s+(?:because|since|as)\b))",
    re.IGNORECASE,
)
MENTIONED = re.compile(
    rf"(?P<named>\b(?:option|choice|answer|letter)s?\s+[(\[\"']*|[(\[](?=[A-Za-z][)\]]))?{LETTER}",
    re.IGNORECASE,
)
#: What an option's text may follow, in place of its letter.
ANSWER_IS = re.compile(
    rf"\b(?:answer|choice|option|solution)\b[^.\n:;?!]{{0,{REACH}}}?(?:\b(?:is|would\s+be|must\s+be|should\s+be)\b|[:=])\s*",
    re.IGNORECASE,
)
_JOINED = re.compile(
    rf"[\"')\]}}.]*\s*(?:,\s*(?:and|or)?|and|or|&|/|\+)\s*(?:option\s+)?[\"'(\[]*{_BEFORE}(?P<letter>[A-Z]){_AFTER}"
    r"(?![)\]\"']*\s*(?:is|are|isn't|was|would|can|cannot|can't|seems|looks|has|does|doesn't|:|fails|refers)\b)"
)
_JOINING = re.compile(
    rf"{_BEFORE}(?P<letter>[A-Z]){_AFTER}[\"')\]}}.]*\s*(?:,\s*(?:and|or)?|\band|\bor|&|/|\+)\s*(?:option\s+)?[\"'(\[]*$"
)
_NEGATED_BEFORE = re.compile(
    r"(?:\b(?:not|never|neither|nor|except|exclude[sd]?|eliminat\w+|rul\w+\s+out|rather\s+than|instead\s+of|unlike|than|without|"
    r"dismiss\w*|discard\w*|reject\w*|(?:wrong|incorrect|false)\s+(?:answer|option|choice)s?(?:\s+(?:is|are)|:))|n't)(?:\s+(?:be|option|choice|answer|the|even|both|either))*[\s\"'(\[]*$",
    re.IGNORECASE,
)
_NEGATED_AFTER = re.compile(
    r"[)\]\"'.]*\s*(?:(?:is|are|was|seems|looks|would\s+be|must\s+be)\s+(?:also\s+|clearly\s+|definitely\s+|simply\s+)?)?"
    r"(?:[-:(?]+\s*)?(?:not\b|n't|wrong|incorrect|false|impossible|out\b|ruled\s+out|eliminated|can't|cannot|could\s?n[o']t|"
    r"doesn't|does\s+not|isn't|aren't|wasn't|fails|no\b|✗|✘|❌)",
    re.IGNORECASE,
)
_UNSURE = re.compile(
    r"\b(?:if|whether|suppose|supposing|assum\w+|unless|doubt|never|(?:don't|do\s+not|can't|cannot|didn't|wouldn't)(?!\s+know)|"
    r"(?:wrong|incorrect|false)(?=\s*$))\b",
    re.IGNORECASE,
)
_STOPPED = r"[)\]\"'*](?![A-Za-z])|\s*(?:$|[\n.,;:!?)(/&=\u3001\u3002\u4e00-\u9fff-])"
#: What comes after ``A`` and ``I`` where they are letters, and not the article and the pronoun.
_VERBS = re.compile(
    rf"{_STOPPED}|\s+(?:is|isn't|was|and|or|are|because|since|as|can't|cannot|seems|looks|it\s+is|"
    r"would|must|should|fails|does|doesn't|over|rather|instead|but|not|✓|✔|✅|✗|✘|❌)(?!\w)",
    re.IGNORECASE,
)
_VERBS_OF_I = re.compile(rf"{_STOPPED}|\s+(?:is|isn't|and|or|because|since)(?!\w)", re.IGNORECASE)


def readied(text: str) -> str:
    """A text without markdown and LaTeX, of which ``\\boxed{B}`` and ``#### B`` say ``answer: B``."""
    text = plain(text).strip()
    parts: list[str] = []
    position = 0
    for box in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        end = balanced(text, box.end()) if box.start() >= position else None
        if end is not None:
            parts += [text[position : box.start()], " answer: ", text[box.end() : end], " \n"]
            position = end + 1
    text = unwrapped("".join([*parts, text[position:]]))
    text = re.sub(r"(?m)^[ \t]*#{3,}[ \t]*(?=\(?[A-Za-z]\)?[ \t]*$)", "answer: ", text)
    return re.sub(r"[*`$]+|(?<!\w)_+|_+(?!\w)|(?m:^[ \t]*(?:#+|>)\s)", "", text).strip()


def is_letter(text: str, match: re.Match[str], letters: str, *, said: bool) -> bool:
    """Whether a match's letter is one of the question's and not an article, a pronoun or a part of something else.

    ``said``: the words before it say that it is one, so that it may be small."""
    letter, end = match["letter"], match.end("letter")
    if letter.upper() not in letters:
        return False
    if letter.islower() and not said:
        return False
    if letter.upper() in "AI":
        enclosed = text[match.start("letter") - 1 : match.start("letter")] in ("(", "[", '"', "'")
        if enclosed and text[end : end + 1] in (")", "]", '"', "'"):
            return True
        if letter == "i" and not re.match(r"\s*(?:$|[\n.,;:!)])", text[end:]):
            return False
        return (_VERBS if letter.upper() == "A" else _VERBS_OF_I).match(text, end) is not None
    return True


def together(text: str, match: re.Match[str], letters: str) -> frozenset[str]:
    """The letter of a statement, and those that are said in one breath with it: ``A and B``."""
    found = {match["letter"].upper()}
    position = match.end("letter")
    while (joined := _JOINED.match(text, position)) and joined["letter"] in letters:
        found.add(joined["letter"])
        position = joined.end("letter")
    return frozenset(found)


def with_those_before(text: str, match: re.Match[str], letters: str) -> frozenset[str]:
    """The letters that something is said of which follows them: ``A and C are right``."""
    found = {match["letter"].upper()}
    start = match.start("letter")
    while (joined := _JOINING.search(text[max(start - 20, 0) : start])) and joined["letter"] in letters:
        found.add(joined["letter"])
        start = max(start - 20, 0) + joined.start("letter")
    return frozenset(found)


def is_denied(text: str, match: re.Match[str]) -> bool:
    """Whether a letter is named as one that it is not."""
    start, end = match.start("letter"), match.end("letter")
    return _NEGATED_BEFORE.search(text[max(start - CONTEXT, 0) : start]) is not None or (
        _NEGATED_AFTER.match(text, end) is not None
    )


def is_unsure(text: str, start: int) -> bool:
    """Whether what begins there is said under a condition, or denied as a whole."""
    before = re.split(r"[.!?\n;,]", text[max(start - CONTEXT, 0) : start])[-1]
    return _UNSURE.search(before) is not None


def listings(text: str, letters: str, known: int | None) -> Iterator[tuple[int, int]]:
    """Where all options are listed, as in a question: from ``A)`` to the end of the last one's line. ``known``: how
    many there are."""
    marks = [mark for mark in MARKED.finditer(text) if mark["letter"] in letters]
    position = 0
    while position < len(marks):
        run = 0
        while (
            position + run < len(marks)
            and run < len(letters)
            and marks[position + run]["letter"] == letters[run]
        ):
            run += 1
        if run and run >= (known if known is not None else min(3, len(letters))):
            last = marks[position + run - 1]
            end = text.find("\n", last.end())
            following = marks[position + run].start() if position + run < len(marks) else len(text)
            yield marks[position].start(), min(end if end >= 0 else len(text), following)
        position += max(run, 1)
