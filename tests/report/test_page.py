"""The page in a real browser: it fits, it can be read and operated by keyboard, and it asks nobody for anything."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from dataclasses import replace

import pytest
from basics import wait_until
from results_helpers import result, write_sweep
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from dpexp.report.writer import write_report

pytestmark = pytest.mark.drawn

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --disable-smooth-scrolling"
).split()
A4_PIXELS = 718  # between margins of 1 cm, at 96 a inch

CONTRASTS = """
const channel = value => value <= 10.31475 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4;
const parse = color => color.match(/[\\d.]+/g).map(Number);
const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const ground = element => {
  for (; element; element = element.parentElement) {
    const color = parse(getComputedStyle(element).backgroundColor);
    if (color.length < 4 || color[3] > 0) return color;
  }
  return [255, 255, 255];
};
const found = [];
for (const element of document.body.querySelectorAll('*')) {
  if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
  const [text, behind] = [parse(getComputedStyle(element).color), ground(element)].map(luminance);
  const ratio = (Math.max(text, behind) + 0.05) / (Math.min(text, behind) + 0.05);
  found.push([ratio, element.textContent.trim().slice(0, 40)]);
}
return found;
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a sweep with two series, many columns, warnings and a failed job."""
    results = [
        result(
            f"strategy={strategy}",
            f"workers={workers}",
            f"data.size={size}",
            seconds=[1.0, 1.3, 0.9],
            baseline=[2, 2, 2],
        )
        for strategy in ("sync_dp", "ddp")
        for workers in (1, 2, 4)
        for size in (5000, 40_000)
    ]
    failed = replace(results[0], status="failed", error="rank 0 was killed by SIGKILL " + "x" * 90, blocks=[])
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "page"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:  # it takes seconds: the first process that needs it writes it for all
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "report.html").exists():
            write_report([write_sweep(folder, *results, failed)], folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    if shutil.which("chromedriver") is None and "CI" not in os.environ:
        pytest.skip("chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in [*FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        yield driver
        driver.quit()


@pytest.fixture
def opened(browser, page):
    """A function that opens the page at a width, in a medium and a colour scheme."""

    def open_page(width: int = 1200, medium: str = "screen", scheme: str = "light") -> webdriver.Chrome:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium, "features": features})
        browser.get(page.as_uri())
        assert wait_until(lambda: browser.execute_script("return document.readyState") == "complete")
        return browser

    return open_page


def test_it_logs_no_error_and_asks_no_question(opened):
    for kind in ("browser", "performance"):
        opened().get_log(kind)  # empties it of what the browser itself does when it starts
    driver = opened()
    assert driver.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert asked
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}


@pytest.mark.parametrize(
    ("width", "medium"), [(400, "screen"), (800, "screen"), (1200, "screen"), (A4_PIXELS, "print")]
)
def test_nothing_is_wider_than_the_page(opened, width, medium):
    driver = opened(width, medium)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert all(
        picture.rect["x"] + picture.rect["width"] <= width for picture in driver.find_elements(By.TAG_NAME, "img")
    )


def test_in_print_the_whole_table_is_there(opened):
    driver = opened(A4_PIXELS, "print")
    table = driver.find_element(By.TAG_NAME, "table").rect
    assert table["x"] + table["width"] <= A4_PIXELS


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("medium", ["screen", "print"])
def test_every_text_stands_out(opened, medium, scheme):
    """At least 4.5 to 1, the WCAG's level AA."""
    found = opened(1200, medium, scheme).execute_script(CONTRASTS)
    assert len(found) > 50
    assert [text for ratio, text in found if ratio < 4.5] == []


def test_every_picture_loads_and_says_what_it_shows(opened, page):
    driver = opened()
    pictures = driver.find_elements(By.TAG_NAME, "img")
    assert len(pictures) == len(list(page.parent.glob("figures/*.svg"))) > 0
    driver.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    for picture in pictures:
        assert driver.execute_script("return arguments[0].decode().then(() => arguments[0].naturalWidth)", picture) > 0
        assert picture.get_attribute("alt")


def test_the_tab_key_reaches_the_table_and_each_figure_in_their_order(opened):
    driver = opened(400)
    driver.execute_script("document.querySelector('details').open = true")
    reached = []
    for _ in range(1 + len(driver.find_elements(By.TAG_NAME, "summary"))):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(driver.switch_to.active_element)
    configurations, table, *figures = reached
    assert table.get_attribute("aria-label") == "table of all configurations"
    assert [configurations, *figures] == driver.find_elements(By.TAG_NAME, "summary")
    before = driver.execute_script("return arguments[0].scrollLeft", table)
    driver.execute_script("arguments[0].focus()", table)
    table.send_keys(Keys.ARROW_RIGHT)
    assert driver.execute_script("return arguments[0].scrollLeft", table) > before


def test_enter_opens_and_closes_a_figure(opened):
    driver = opened()
    summary = driver.find_elements(By.TAG_NAME, "summary")[-1]
    details = summary.find_element(By.XPATH, "..")
    assert details.get_attribute("open") is None
    summary.send_keys(Keys.ENTER)
    assert details.get_attribute("open") is not None
