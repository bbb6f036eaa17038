"""The report as a file: one, whole, with everything in it, and nothing in it that isn't text."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tailrace.errors import TailraceError
from tailrace.evaluation import report
from tailrace.evaluation.figures import Figures
from tailrace.evaluation.report import samples
from tests.support.evaluation import CATEGORIES, HOSTILE, Run, made_run

VOID = {"meta", "link", "input", "br", "img"}


class Page(HTMLParser):
    """A strict reading: every element that is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return "".join(data for tag, data in self.texts if tag not in {"script", "style"})


def page_of(run: Run, figures: Figures | None = None) -> str:
    return b"".join(report.render(run.info, figures or run.figures, run.rows)).decode()


def lines_of(text: str) -> list[Any]:
    """What the page's script unpacks."""
    packed = re.findall(r'<script type="text/plain" class="samples">([^<]*)</script>', text)
    whole = b"".join(base64.b64decode(piece, validate=True) for piece in packed)
    return [json.loads(line) for line in gzip.decompress(whole).splitlines()]


def test_everything_of_a_run_is_in_it() -> None:
    run = made_run(items=30)
    page = Page(text := page_of(run))
    for part in (
        *(run.info.id, run.info.suite, run.info.description, run.info.dataset, run.info.reason),
        *run.info.tags,
        *run.info.models.values(),
        *run.info.scorers,
        *CATEGORIES,
        *("pass@2", "acme:judge-large", "$0.412", "6 min 12 s", "rate_limited", "2026-11-28 14:15 UTC"),
    ):
        assert part is not None
        assert part in page.text, part
    assert len([svg for svg in page.all("svg") if svg.get("class") == "plot"]) == 2 * 3 + 2
    assert sum(line[0] == "s" for line in lines_of(text)) == len(run.rows)


def test_the_lines_hold_each_sample_and_each_item_once() -> None:
    run = made_run(items=12, hostile=True)
    items, asked, found = [], [], []
    for kind, *fields in lines_of(page_of(run)):
        {"i": items, "m": asked, "s": found}[kind].append(fields)
    assert [fields[0] for fields in items] == [row.item.id for row in run.rows[::6]]
    assert len(asked) == len({json.dumps(row.messages) for row in run.rows})
    for fields, row in zip(found, run.rows, strict=True):
        arm, item, messages, n, outcome, text, *_, record, scores = fields
        sample = row.sample
        assert run.figures.arms[arm].key == sample.arm
        assert items[item][0] == sample.item
        assert items[item][2] == row.item.input
        assert asked[messages] == [row.messages]
        assert (n, outcome, text) == (sample.sample, sample.outcome.value, sample.text)
        assert record == list(msgspec.structs.astuple(sample.record))
        assert [score[0] for score in scores] == [sample.verdict(name).value for name in run.info.scorers]


def test_it_loads_nothing_and_runs_only_what_is_its_own() -> None:
    page = Page(page_of(made_run(items=6)))
    sources = [a[name] for _, a in page.tags for name in ("src", "href") if name in a]
    assert sources
    assert all(source is not None and source.startswith(("#", "data:")) for source in sources)
    assert not any(name.startswith("on") or name == "style" for _, a in page.tags for name in a)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        text = [data for name, data in page.texts if name == tag][-1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy


def test_what_looks_like_markup_changes_nothing_of_the_page() -> None:
    """No element and no attribute that isn't there without it, and all of it is there as text."""
    plain, hostile = Page(page_of(made_run(items=24))), Page(page_of(run := made_run(items=24, hostile=True)))
    shapes = [{(name, frozenset(attributes)) for name, attributes in page.tags} for page in (plain, hostile)]
    assert shapes[1] - shapes[0] <= {("td", frozenset({"class", "data-v"}))}
    for tag in ("script", "style", "meta", "link", "section", "table", "form", "dialog"):
        assert len(hostile.all(tag)) == len(plain.all(tag))
    for text in (run.info.suite, run.info.dataset, *(arm.model for arm in run.figures.arms)):
        assert text in hostile.text


def test_names_that_can_not_be_encoded_do_no_harm() -> None:
    run = made_run(items=3)
    info = msgspec.structs.replace(run.info, suite=f"half {HOSTILE[-1]}")
    assert b"half a" in b"".join(report.render(info, run.figures, run.rows))


@pytest.mark.parametrize(("arms", "items", "samples"), [(1, 1, 1), (1, 5, 1), (2, 1, 3), (3, 0, 1)])
def test_small_runs_have_a_report_too(arms: int, items: int, samples: int) -> None:
    run = made_run(arms=arms, items=items, samples=samples)
    text = page_of(run)
    Page(text)
    assert sum(line[0] == "s" for line in lines_of(text)) == len(run.rows)


def test_a_run_without_any_figures_has_a_report_too() -> None:
    """One that was stopped before its first answer."""
    run = made_run(items=2)
    page = Page(page_of(run, Figures([], [], [], 0, 0)))
    assert "No sample has a score yet." in page.text


def test_an_arm_that_the_figures_do_not_have_is_added() -> None:
    run = made_run(items=2)
    text = page_of(run, msgspec.structs.replace(run.figures, arms=run.figures.arms[:1], pairs=[]))
    lines = lines_of(text)
    assert [line[1] for line in lines if line[0] == "a"] == [arm.key for arm in run.figures.arms[1:]]
    assert sorted({line[1] for line in lines if line[0] == "s"}) == [0, 1, 2]


def test_more_samples_than_a_page_should_hold_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_run(items=10)
    monkeypatch.setattr(samples, "MOST", len(run.rows))
    assert lines_of(page_of(run))[-1][0] == "s"
    monkeypatch.setattr(samples, "MOST", 20)
    lines = lines_of(page_of(run))
    assert sum(line[0] == "s" for line in lines) == 20
    assert lines[-1] == ["cut"]


def test_samples_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "PIECE", 300)
    run = made_run(items=20)
    text = page_of(run)
    assert text.count('class="samples">') > 10
    assert sum(line[0] == "s" for line in lines_of(text)) == len(run.rows)


def test_rows_are_read_as_they_are_needed() -> None:
    """The head of the page is there before the first row is asked for."""
    run = made_run(items=2)

    def rows() -> Any:
        raise ZeroDivisionError
        yield

    pieces = report.render(run.info, run.figures, rows())
    head = b""
    with pytest.raises(ZeroDivisionError):
        for piece in pieces:
            head += piece
    assert b"<h1>" in head


def test_the_file_is_put_in_place_in_one_step(tmp_path: Path) -> None:
    run = made_run(items=2)
    path = tmp_path / "report.html"
    report.write(path, run.info, run.figures, run.rows)
    assert path.read_bytes() == b"".join(report.render(run.info, run.figures, run.rows))
    with pytest.raises(TailraceError, match="can't write"):
        report.write(tmp_path / "nowhere" / "report.html", run.info, run.figures, run.rows)
    assert list(tmp_path.iterdir()) == [path]
