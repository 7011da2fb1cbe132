"""The site in a browser, at desktop and phone width: no page is too wide, and no code block scrolls sideways."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

from .docs_pages import DOCS

ROOT = DOCS.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("playwright", "mkdocs", "mkdocstrings") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs the dev extra: {', '.join(MISSING)}"),
    pytest.mark.skipif(BROWSER is None, reason="needs Debian's chromium: apt-get install chromium"),
]

WIDTHS = {"desktop": 1280, "phone": 390}
PAGES = ["", "get-started", "command-line", "results/markov", "results/tiny-news", "results/methods", "api"]
TOO_WIDE = """
() => [...document.querySelectorAll("pre > code")].filter(one => one.scrollWidth > one.clientWidth + 1)
    .map(one => one.textContent.slice(0, 80))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    return folder


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, site):
    pages = []

    def call(name, width):
        page = browser.new_page(viewport={"width": width, "height": 844})
        pages.append(page)
        page.goto((site / name / "index.html").as_uri())
        return page

    yield call
    for page in pages:
        page.close()


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_the_window(name, width, open_page):
    page = open_page(name, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(TOO_WIDE) == []


def test_the_colours_can_be_switched(open_page):
    page = open_page("", WIDTHS["desktop"])
    schemes = []
    for _ in range(2):
        schemes.append(page.locator("body").get_attribute("data-md-color-scheme"))
        page.locator("label[for^=__palette]:visible").click()
    assert sorted(schemes) == ["default", "slate"]
