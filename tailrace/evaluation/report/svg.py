"""Pieces of SVG. Across, everything is in percent of a picture's width, so that a picture fits any screen and its
letters keep their size; down, in pixels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from markupsafe import Markup, escape

#: Where a scale begins and ends, in percent of the width: marks at the ends have room.
LEFT, RIGHT = 1.5, 98.5
#: The longest label, in characters; the whole of it is in its tooltip.
LABEL = 36
#: From such a ratio of the largest to the smallest value on, a scale is logarithmic.
LOGARITHMIC = 20.0


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element. Children and attributes are escaped unless they are Markup; ``x_y`` is the attribute ``x-y``, a last
    ``_`` keeps off Python's words, and None leaves an attribute out."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, inner)


def picture(id: str, title: str, description: str, height: int, *children: object) -> Markup:
    """A whole ``<svg>``: readers of screens get the title and the description."""
    return tag(
        "svg",
        tag("title", title, id=f"{id}-title"),
        tag("desc", description, id=f"{id}-desc"),
        *children,
        role="img",
        aria_labelledby=f"{id}-title {id}-desc",
        width="100%",
        height=height,
        class_="plot",
    )


def line(x1: str, y1: float, x2: str, y2: float, class_: str) -> Markup:
    return tag("line", x1=x1, y1=f"{y1:g}", x2=x2, y2=f"{y2:g}", class_=class_)


def dot(x: str, y: float, radius: float, class_: str, tip: str) -> Markup:
    return tag("circle", tag("title", tip), cx=x, cy=f"{y:g}", r=f"{radius:g}", class_=class_)


def bar(x1: str, y: float, width: str, height: float, class_: str, tip: str) -> Markup:
    return tag("rect", tag("title", tip), x=x1, y=f"{y:g}", width=width, height=f"{height:g}", class_=class_)


def words(
    x: str, y: float, text: str, class_: str, *, anchor: str = "start", dx: float = 0, most: int = LABEL
) -> Markup:
    """A text, cut where it is longer than ``most`` characters."""
    short = text if len(text) <= most else text[: most - 1] + "…"
    tip = tag("title", text) if short != text else ""
    return tag(
        "text", short, tip, x=x, y=f"{y:g}", dx=f"{dx:g}" if dx else None, text_anchor=anchor, class_=class_
    )


@dataclasses.dataclass(frozen=True)
class Scale:
    """From values to percents of the width. ``ticks`` are the values that an axis names."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False
    left: float = LEFT
    right: float = RIGHT

    def place(self, value: float) -> float:
        """In percent; what is beyond an end is put there."""
        value = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.left + (self.right - self.left) * (value - low) / (high - low)

    def at(self, value: float) -> str:
        return percents(self.place(value))

    def width(self, low: float, high: float) -> str:
        return percents(self.place(high) - self.place(low))


def percents(value: float) -> str:
    return f"{value:.2f}%"


def linear(
    values: Iterable[float], *, count: int = 5, floor: float | None = None, ceiling: float | None = None
) -> Scale:
    """A scale with round ends that has room for all of the values, and goes beyond neither floor nor ceiling."""
    found = list(values)
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    if high - low < 1e-12:
        room = 0.1 * (max(abs(low), abs(high)) if max(abs(low), abs(high)) > 1e-9 else 1.0)
        low, high = low - room, high + room
    step = _step((high - low) / count)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    if floor is not None:
        low = max(low, floor)
    if ceiling is not None:
        high = min(high, ceiling)
    if high - low < step / 2:
        low, high = (low - step, high) if ceiling is not None and high >= ceiling else (low, high + step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Scale(low, high, tuple(n * step for n in range(first, last + 1)))


def of_costs(values: Iterable[float]) -> Scale:
    """A scale for amounts from 0 up: logarithmic where they are of different orders."""
    found = list(values)
    low, high = (min(found), max(found)) if found else (0.0, 0.0)
    if low > 0 and high / low >= LOGARITHMIC:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        factors = (1, 2, 5) if last - first <= 1 else (1, 3) if last - first <= 2 else (1,)
        ticks = tuple(f * 10.0**e for e in range(first, last + 1) for f in factors)
        low, high = low / 1.3, high * 1.3
        return Scale(low, high, tuple(t for t in ticks if low <= t <= high), logarithmic=True)
    return linear([0.0, high or 1e-6], count=4, floor=0.0)


def _step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, at least ``rough``."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def axis(scale: Scale, top: float, bottom: float, names: Iterable[str]) -> Markup:
    """Lines from top to bottom at the ticks, with their names below."""
    parts: list[Markup] = []
    for value, name in zip(scale.ticks, names, strict=True):
        place = scale.place(value)
        anchor = "start" if place < 6 else "end" if place > 94 else "middle"
        parts.append(line(scale.at(value), top, scale.at(value), bottom, "grid"))
        parts.append(words(scale.at(value), bottom + 15, name, "tick", anchor=anchor))
    return Markup("").join(parts)
