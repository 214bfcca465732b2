"""The page in a real Chromium, before a real server."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.conftest import Serving

ROOT = Path(__file__).parents[2]
ARTIFACTS = ROOT / "artifacts"
SAMPLE = ROOT / "app/web/sample.jpg"
PHOTO = ROOT.parent / "shared/data/camvid/test/0001TP_009750.jpg"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
PATIENCE = 60_000  # milliseconds; for what hangs, not for what is slow
expect.set_options(PATIENCE)
# Whether the address has the point whose map is shown. Its x and y are the picture's pixels, and so are
# the largest canvas's.
IN_STEP = """([overlay, rows, columns]) => {
  const address = new URLSearchParams(location.hash.slice(1));
  const canvases = [...document.querySelectorAll('canvas.overlay')];
  const [width, height] = ['width', 'height'].map(side => Math.max(...canvases.map(canvas => canvas[side])));
  const cell = [Math.floor(address.get('y') * rows / height), Math.floor(address.get('x') * columns / width)];
  return address.has('x') && document.querySelector(overlay).dataset.cell === cell.join(',');
}"""
HEAT = "#heat-stage .overlay"
ROWS, COLUMNS = 30, 40  # of the bundled models' attention

Opened = Callable[..., Page]


@pytest.fixture(scope="package")
def url(serving: Serving) -> Iterator[str]:
    with serving() as served:
        yield served.url


@pytest.fixture(scope="package")
def api(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


# Not for longer: while Playwright is there, so is its event loop, and no other test could run one.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None and os.environ.get("CI"):
        pytest.fail("CI must have a Chromium")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser, url: str) -> Iterator[Opened]:
    """`opened("#x=1")`: the page at that link. All that goes wrong in it, or leaves this host, fails the test.

    A request that the server refuses is logged by the browser as well: `refusals` is how many of these must be there.
    """
    contexts, wrong, expected = [], [], [0]

    def note(message: Any) -> None:
        if message.type in ("error", "warning"):
            wrong.append(message.text)

    def opened(link: str = "", refusals: int = 0, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        expected[0] += refusals
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: request.url.startswith((url, "blob:")) or wrong.append(request.url))
        page.goto(f"{url}/{link}")
        return page

    yield opened
    for context in contexts:
        context.close()
    refused = [text for text in wrong if text.startswith("Failed to load resource")]
    assert wrong == refused
    assert len(refused) == expected[0], refused


def choose(page: Page, picture: Path = SAMPLE) -> str:
    """Has a picture segmented; returns its result's id once the mask and the first map are there."""
    with page.expect_response(lambda response: "/segment" in response.url) as reply:
        page.set_input_files("#file", picture)
    page.locator("#heat-stage .overlay[data-cell]").wait_for()
    return reply.value.headers["x-result-id"]


def click(panel: Locator, across: float, down: float) -> None:
    box = panel.bounding_box()
    assert box is not None
    panel.click(position={"x": across * box["width"], "y": down * box["height"]})


def wait_for_cell(overlay: Locator, row: int, column: int) -> None:
    overlay.and_(overlay.page.locator(f'[data-cell="{row},{column}"]')).wait_for()


def point_of(page: Page, overlay: str = HEAT) -> dict[str, int]:
    """The point in the page's address, which follows at its leisure: browsers refuse too many changes."""
    page.wait_for_function(IN_STEP, arg=[overlay, ROWS, COLUMNS])
    return {name: int(value) for name, value in re.findall(r"[#&]([xy])=(\d+)", page.evaluate("location.hash"))}


def pixels(canvas: Locator) -> NDArray[np.uint8]:
    """[H, W, 4]: what is on a canvas."""
    encoded = canvas.evaluate("canvas => canvas.toDataURL('image/png').split(',')[1]")
    return np.array(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA"))


def shoot(page: Page, name: str) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=True)
