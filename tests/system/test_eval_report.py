"""The report of a run in Chromium: opened from a file, filtered, sorted, read, compared, and sent on as an address."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from tailrace.evaluation.report import write
from tailrace.evaluation.shapes import Outcome, Sample, Verdict
from tests.support.chromium import started_chromium
from tests.support.evaluation import HOSTILE, SCORERS, Run, made_run
from tests.support.valkey import wait_until

pytestmark = pytest.mark.system

NUMERIC = SCORERS[0]
PAGE = 50


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A browser that says what its pages log and ask for."""
    profile = tmp_path_factory.mktemp("chromium")
    with started_chromium(profile, logs={"browser": "ALL", "performance": "ALL"}) as browser:
        yield browser


@pytest.fixture(scope="module")
def run() -> Run:
    return made_run()


@pytest.fixture(scope="module")
def path(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write(path, run.info, run.figures, run.rows)
    return path


class Report:
    """The page, as somebody uses it who sees it."""

    def __init__(self, browser: Chrome, path: Path, hash: str = "") -> None:
        self.browser = browser
        browser.get("about:blank")  # so that another hash alone loads the page too
        for log in ("browser", "performance"):  # what is read is gone
            browser.get_log(log)
        browser.get(path.as_uri() + hash)
        self.until("document.documentElement.dataset.ready")

    def js(self, script: str, *arguments: Any) -> Any:
        """As JSON, which has words for halves of surrogate pairs; the driver has none."""
        text = self.browser.execute_script(f"return JSON.stringify({script}) ?? null", *arguments)
        return None if text is None else json.loads(text)

    def until(self, expression: str) -> None:
        wait_until(lambda: bool(self.js(expression)), 30.0, expression)

    def select(self, name: str, text: str) -> None:
        Select(self.browser.find_element(By.CSS_SELECTOR, f"#filters [name={name}]")).select_by_visible_text(
            text
        )

    def type(self, name: str, text: str) -> None:
        """Into a field, and wait until the table has heard of it."""
        field = self.browser.find_element(By.CSS_SELECTOR, f"#filters [name={name}]")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)
        wait_until(lambda: self.js(f"state.{name}") == text, 30.0, "search")

    def click(self, selector: str) -> None:
        element = self.browser.find_element(By.CSS_SELECTOR, selector)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    @property
    def count(self) -> str:
        return self.js("document.getElementById('count').textContent")

    def cells(self, column: int) -> list[str]:
        """What a column of the table of samples shows, from 0."""
        script = "[...document.querySelectorAll('#table tbody tr')].map((row) => row.cells[arguments[0]].innerText)"
        return self.js(script, column)

    @property
    def dialog(self) -> str:
        return self.js("document.querySelector('dialog[open]')?.innerText ?? ''")

    def complaints(self) -> list[str]:
        """What the console said of errors, and what was asked of anything but the file."""
        said = [entry["message"] for entry in self.browser.get_log("browser")]
        for entry in self.browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if not url.startswith(("file:", "data:", "about:")):
                    said.append(f"asked for {url}")
        return said


@pytest.fixture
def report(chromium: Chrome, path: Path) -> Iterator[Report]:
    """Whatever a test does, nothing goes wrong and nothing is loaded."""
    opened = Report(chromium, path)
    yield opened
    assert opened.complaints() == []


def _having(run: Run, wanted: Callable[[Sample], bool]) -> list[Sample]:
    return [row.sample for row in run.rows if wanted(row.sample)]


def test_the_page_shows_the_run_and_every_sample_of_it(report: Report, run: Run) -> None:
    text = report.js("document.body.innerText")
    for part in (
        run.info.suite,
        run.info.id,
        run.info.status,
        "the budget of $2.00 is spent",
        "acme:judge-large",
    ):
        assert part in text
    assert report.js("document.querySelectorAll('svg.plot').length") == 2 * 3 + 2
    assert report.count == "720 of 720 samples"
    assert report.js("samples.map((s) => s.text)") == [row.sample.text for row in run.rows]
    assert report.js("samples.map((s) => s.messages)") == [row.messages for row in run.rows]


def test_filters_leave_what_they_say(report: Report, run: Run) -> None:
    report.select("arm", "acme:small-2")
    report.select("verdict", "wrong")
    report.select("category", report.js("document.querySelector('[name=category]').options[2].textContent"))
    wanted = _having(
        run,
        lambda s: (
            s.arm == "acme:small-2" and s.category == "knowledge" and s.verdict(NUMERIC) is Verdict.WRONG
        ),
    )
    assert report.count == f"{len(wanted)} of 720 samples"
    assert report.cells(0) == [f"{s.item}\nknowledge" for s in wanted][:PAGE]
    assert set(report.cells(1)) == {"acme:small-2"}
    assert set(report.cells(6)) == {"wrong"}
    report.click("#filters [type=reset]")
    assert report.count == "720 of 720 samples"


def test_outcomes_and_ranges_of_scores_filter_too(report: Report, run: Run) -> None:
    refused = _having(run, lambda s: s.outcome is Outcome.REFUSED)
    report.select("outcome", f"refused ({len(refused)})")
    assert report.count == f"{len(refused)} of 720 samples"
    report.click("#filters [type=reset]")
    report.select("scorer", "judge")
    report.type("min", "40")
    report.type("max", "60")
    partly = _having(run, lambda s: s.verdict("judge") is Verdict.PARTLY)
    assert report.count == f"{len(partly)} of 720 samples"


def test_search_takes_texts_as_they_are(report: Report, run: Run) -> None:
    """Not as patterns, whatever their case, in questions and answers."""
    wanted = [r for r in run.rows if "**nairobi**." in (r.sample.text or "").lower()]
    report.type("q", "**NAIROBI**.")
    assert report.count == f"{len(wanted)} of 720 samples"
    report.type("q", "capital of peru")
    assert report.count == f"{sum('Peru' in r.item.input for r in run.rows)} of 720 samples"
    report.type("q", "no such words")
    assert report.count == "0 of 720 samples"
    report.click("#table .empty button")
    assert report.count == "720 of 720 samples"


def test_columns_sort_both_ways_and_pages_turn(report: Report, run: Run) -> None:
    def shown(sample: Sample) -> str:
        ms = sample.record.duration_ms or 0
        return f"{ms} ms" if ms < 1000 else f"{ms / 1000:.{2 if ms < 10000 else 1}f} s"

    times = sorted((row.sample for row in run.rows), key=lambda s: s.record.duration_ms or 0)
    report.click("#table [data-sort=latency]")
    assert report.js("document.querySelector('#table [aria-sort]').ariaSort") == "ascending"
    assert report.cells(8) == [shown(s) for s in times[:PAGE]]
    report.click("#table [data-sort=latency]")
    assert report.cells(8) == [shown(s) for s in times[::-1][:PAGE]]
    report.click("#next")
    assert report.js("document.getElementById('page').textContent") == "Page 2 of 15"
    assert report.cells(8) == [shown(s) for s in times[::-1][PAGE : 2 * PAGE]]
    report.click("#previous")
    assert report.js("document.getElementById('previous').disabled")


def test_tables_of_figures_sort(report: Report) -> None:
    def first() -> list[str]:
        return report.js(
            "[...document.querySelectorAll('#s0 .summary tbody tr')].map((row) => row.cells[0].innerText)"
        )

    ranked = first()
    report.click("#s0 .summary thead th:nth-child(2) button")
    assert first() == ranked
    report.click("#s0 .summary thead th:nth-child(2) button")
    assert first() == ranked[::-1]


def test_a_sample_opens_with_all_that_is_known_of_it(report: Report, run: Run) -> None:
    """By its button, from the keyboard too; arrows go on, Escape closes."""
    place, row = next(
        (n, row) for n, row in enumerate(run.rows) if row.sample.verdict(NUMERIC) is Verdict.WRONG
    )
    assert place < PAGE
    button = report.browser.find_elements(By.CSS_SELECTOR, "#table tbody .link")[place]
    button.send_keys(Keys.ENTER)
    text, score = report.dialog, row.sample.scores[NUMERIC]
    for part in (
        row.item.id,
        row.item.input,
        row.messages[0]["content"],
        row.item.targets[0],
        score.explanation,
        row.sample.completion_id,
        f"{row.sample.record.completion_tokens}",
        '"source": "written for tests"',
    ):
        assert part is not None
        assert part in text
    assert row.sample.text == report.js("document.querySelector('dialog .answer').textContent")
    report.browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    after = run.rows[place + 1].sample
    assert f"{after.arm} sample {after.sample}" in report.dialog
    report.browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    report.until("!document.querySelector('dialog[open]')")


def test_arms_stand_side_by_side_where_they_differ(report: Report, run: Run) -> None:
    report.click("#filters [value=compare]")
    assert report.count == "120 of 120 items"
    report.click("#choose label:nth-child(3)")
    report.click("#filters [name=differ]")
    means: dict[str, dict[str, float]] = {}
    for row in run.rows:
        score = row.sample.scores.get(NUMERIC)
        own = means.setdefault(row.item.id, {})
        own[row.sample.arm] = own.get(row.sample.arm, 0.0) + ((score and score.value) or 0.0)
    apart = [item for item, own in means.items() if own["acme:large-2"] != own["acme:small-2"]]
    assert report.count == f"{len(apart)} of 120 items"
    assert report.js("[...document.querySelectorAll('.sides thead th')].map((cell) => cell.innerText)") == [
        "Item",
        "acme:large-2",
        "acme:small-2",
    ]
    assert [cell.split("\n")[0] for cell in report.cells(0)] == apart[:20]
    report.click(".sides .side .link")
    assert apart[0] in report.dialog


def test_what_is_shown_is_in_the_address(report: Report, chromium: Chrome, path: Path) -> None:
    """Sent to somebody, it shows the same."""
    report.select("verdict", "truncated")
    report.type("q", "bottles")
    report.click("#table [data-sort=cost]")
    report.click("#table tbody .link")
    count, rows, dialog = report.count, report.cells(0), report.dialog
    assert dialog
    again = Report(chromium, path, report.js("location.hash"))
    assert (again.count, again.cells(0), again.dialog) == (count, rows, dialog)
    assert again.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 480])
def test_it_fits_the_screen_and_can_be_read(chromium: Chrome, path: Path, width: int, scheme: str) -> None:
    """Nothing sticks out to the side, and letters stand out from the page in both schemes."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for hash in ("", "#view=compare"):
            report = Report(chromium, path, hash)
            root = "document.documentElement"
            assert report.js(f"{root}.scrollWidth") == report.js(f"{root}.clientWidth")
        assert min(_contrasts(report)) >= 4.5
    finally:
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def _contrasts(report: Report) -> list[float]:
    """WCAG's contrast ratios of the colours of text on what they stand on."""
    pairs = [
        ("--text", "--page"),
        ("--text", "--card"),
        ("--dim", "--page"),
        ("--dim", "--card"),
        ("--link", "--card"),
        ("--right-text", "--good"),
        ("--wrong-text", "--bad"),
        ("--other-text", "--odd"),
        ("--text", "--warn"),
    ]
    script = (
        "arguments[0].map((names) => names.map((n) => getComputedStyle(document.body).getPropertyValue(n)))"
    )
    return [_ratio(*map(_luminance, pair)) for pair in report.js(script, pairs)]


def _luminance(colour: str) -> float:
    def linear(part: int) -> float:
        share = part / 255
        return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(colour.strip()[n : n + 2], 16)) for n in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _ratio(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


def test_texts_that_would_be_markup_are_texts(chromium: Chrome, tmp_path: Path) -> None:
    """Wherever a run has them: no script of theirs runs, and none is lost on the way."""
    run = made_run(items=24, samples=1, hostile=True)
    write(tmp_path / "report.html", run.info, run.figures, run.rows)
    report = Report(chromium, tmp_path / "report.html")
    assert report.js("samples.map((s) => s.text)") == [row.sample.text for row in run.rows]
    assert report.js("items.map((item) => item.input)") == [r.item.input for r in run.rows[::3]]
    assert f"arithmetic-and-knowledge{HOSTILE[0]}" in report.js("document.querySelector('h1').textContent")
    report.click("#table tbody .link")
    assert HOSTILE[0] in report.dialog
    report.click("#others")
    assert report.js("document.querySelectorAll('.sides tbody tr').length") == 1
    assert report.js("document.querySelectorAll('img, iframe, script:not([type])').length") == 1, (
        "our own script"
    )
    assert report.js("window.harmed ?? null") is None
    assert report.complaints() == []


def test_a_script_that_got_in_all_the_same_does_not_run(chromium: Chrome, path: Path, tmp_path: Path) -> None:
    """The page's policy knows its own script and style by their hashes."""
    spoilt = tmp_path / "spoilt.html"
    harm = b"<script>window.harmed = 1</script><img src='https://example.com/x.png' onerror='window.harmed = 2'><main>"
    spoilt.write_bytes(path.read_bytes().replace(b"<main>", harm, 1))
    report = Report(chromium, spoilt)
    assert report.js("window.harmed ?? null") is None
    complaints = report.complaints()
    assert any("script-src" in said for said in complaints)
    assert any("img-src" in said for said in complaints)


def test_thirty_thousand_samples_can_be_browsed(chromium: Chrome, tmp_path: Path) -> None:
    run = made_run(arms=5, items=3000, samples=2)
    write(tmp_path / "report.html", run.info, run.figures, run.rows)
    report = Report(chromium, tmp_path / "report.html")
    assert report.count == "30,000 of 30,000 samples"
    report.type("q", "the inverse operation")
    wanted = sum("the inverse operation" in (row.sample.text or "") for row in run.rows)
    assert report.count == f"{wanted:,} of 30,000 samples"
    assert len(report.cells(0)) == PAGE
    assert report.complaints() == []
