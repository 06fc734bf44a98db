"""The report in a real browser. Without one these are skipped, unless DS2D2_BROWSER=1 says that there must be one."""

import os
import re
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from ds2d2_yolo.report.examples import Illustration
from ds2d2_yolo.report.page import Listing, write_report
from tests.helpers.reports import HOSTILE, example, full_report, rating


@pytest.fixture
def report():
    return full_report()


def program(*names):
    return next((path for name in names if (path := shutil.which(name))), None)


def missing(reason):
    (pytest.fail if os.environ.get("DS2D2_BROWSER") == "1" else pytest.skip)(reason)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium without any network."""
    try:
        from selenium import webdriver
    except ImportError:
        missing("selenium is not installed")
    chromium, driver = program("chromium", "chromium-browser", "google-chrome"), program("chromedriver")
    if not chromium or not driver:
        missing("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", "hide-scrollbars",
        f"user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield window
    window.quit()


@pytest.fixture
def show(browser, tmp_path):
    """Opens a report at a width, by day or night; its console must stay empty."""

    def opened(report, width=1280, scheme="light"):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        browser.get_log("browser")
        browser.get(write_report(tmp_path / "report.html", report).as_uri())
        return browser

    yield opened
    assert browser.get_log("browser") == []


def run(browser, script):
    return browser.execute_script(f"return {script}")


def test_an_error_of_a_page_would_be_seen(browser, tmp_path):
    (tmp_path / "bad.html").write_text("<script>nowhere()</script>")
    browser.get((tmp_path / "bad.html").as_uri())
    assert "nowhere is not defined" in browser.get_log("browser")[0]["message"]


def test_a_browser_shows_the_report_and_asks_for_nothing(show, report):
    page = show(report)
    assert page.title == "Detectors side by side: my.yaml"
    loaded = run(page, "performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))")
    assert loaded == []
    heights = run(page, "[...document.querySelectorAll('section > .grid .chart')].map(e => e.clientHeight)")
    assert len(heights) == 5 and min(heights) > 40


def test_hostile_names_do_not_run(show, report):
    models = tuple(replace(m, name=HOSTILE + m.name, rating=rating(50, names=(HOSTILE, "car"))) for m in report.models)
    page = show(replace(report, data=HOSTILE, models=models, illustration=Illustration((example(HOSTILE),), 1)), 360)
    assert run(page, "typeof hacked") == "undefined"
    assert run(page, "document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_can_be_read(show, report, scheme):
    long = replace(report.models[2], name="student_with_a_rather_long_name_that_has_no_end_and_no_spaces_s0")
    page = show(replace(report, models=(*report.models[:2], long)), 360, scheme)
    page.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert run(page, "[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    wide = run(page, "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg') && "
                     "e.getBoundingClientRect().right > 360.5).map(e => e.outerHTML)")  # fmt: skip
    assert wide == []
    letters = run(
        page,
        "[...document.querySelectorAll('.chart text')].map(e => e.getScreenCTM()).map(m => 11 * Math.hypot(m.a, m.b))",
    )
    assert min(letters) >= 8
    pictures = run(page, "[...document.querySelectorAll('.picture')].map(e => e.clientWidth)")
    assert min(pictures) >= 300  # one below the other


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_by_day_and_by_night(show, report, scheme):
    page = show(report, scheme=scheme)

    def light(script):
        """Relative luminance as WCAG 2 defines it."""
        rgb = [int(v) / 255 for v in re.findall(r"\d+", run(page, script))[:3]]
        return np.dot(
            [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in rgb], [0.2126, 0.7152, 0.0722]
        )

    paper = light("getComputedStyle(document.body).backgroundColor")
    assert (paper < 0.1) == (scheme == "dark")
    for what, prop in (("h1", "color"), (".soft", "color"), ("figcaption", "color"), (".chart text", "fill")):
        pair = sorted((paper, light(f"getComputedStyle(document.querySelector('{what}')).{prop}")))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, what
    for line in (".line.c0", ".line.c1", ".line.c2"):
        pair = sorted((paper, light(f"getComputedStyle(document.querySelector('{line}')).stroke")))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 3, line


def test_pictures_show_right_wrong_and_missed_in_colours(show, report):
    page = show(report)
    panels = page.find_elements("css selector", ".picture")
    assert len(panels) == 3
    for i, panel in enumerate(panels):
        page.execute_script("arguments[0].scrollIntoView()", panel)
        shot = cv2.imdecode(np.frombuffer(panel.screenshot_as_png, np.uint8), cv2.IMREAD_COLOR)
        assert abs(shot[5, 5].astype(int) - 128).max() < 4  # the picture itself is there in every panel
        seen = [
            (abs(shot.astype(int) - bgr).max(2) < 60).sum() for bgr in ((255, 184, 47), (54, 90, 255), (26, 225, 255))
        ]
        assert (min(seen) > 50) if i == 2 else (max(seen) == 0)


def test_a_click_on_a_heading_sorts(show, report):
    page = show(report)
    heading = page.find_elements("css selector", "table.sortable thead th")[1].find_element("css selector", "button")
    first = "[...document.querySelector('table.sortable').tBodies[0].rows].map(r => r.cells[0].dataset.value)"
    heading.click()
    assert run(page, first) == ["big", "small", "plain"]
    heading.click()
    assert run(page, first) == ["plain", "small", "big"]
    assert run(page, "document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "ascending"


def test_names_are_sorted_from_a_on_and_the_arrow_says_so(show, report):
    page = show(report)
    table = "document.querySelector('table.sortable')"
    for order, names in (("ascending", ["big", "plain", "small"]), ("descending", ["small", "plain", "big"])):
        page.execute_script(f"{table}.querySelector('thead button').click()")
        assert run(page, f"[...{table}.tBodies[0].rows].map(r => r.cells[0].dataset.value)") == names
        assert run(page, f"{table}.querySelector('th').getAttribute('aria-sort')") == order


def test_numbers_beside_dashes_sort_as_numbers(show, report):
    rows = tuple((name, gain) for name, gain in zip("abcde", ("-", "-0.5", "+10.2", "+1.3", "-2.0"), strict=True))
    page = show(replace(report, listings=(Listing("Seeds", ("setting", "gain"), rows),)))
    own = "[...document.querySelectorAll('table.sortable')].find(t => t.caption.textContent.startsWith('Seeds'))"
    page.execute_script(f"{own}.querySelectorAll('thead button')[1].click()")
    assert run(page, f"[...{own}.tBodies[0].rows].map(r => r.cells[0].dataset.value)") == ["c", "d", "b", "e", "a"]


def test_on_paper_nothing_is_folded_away(show, report):
    page = show(report)
    assert run(page, "document.querySelectorAll('details:not([open])').length") > 0
    page.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert run(page, "document.querySelectorAll('details:not([open])').length") == 0
