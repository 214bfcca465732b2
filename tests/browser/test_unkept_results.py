"""The page before a server that has no room for any result: masks, and no word or link of what can't be had."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import SAMPLE, Opened, click, pixels, shoot
from tests.conftest import Serving

NOT_KEPT = "The server has no room to keep this result"


@pytest.fixture(scope="module")
def url(serving: Serving) -> Iterator[str]:
    with serving(max_result_bytes="1000") as served:
        yield served.url


def choose(page: Page, picture: Path = SAMPLE) -> list[str]:
    """Has a picture segmented; the addresses that the page asks from then on."""
    asked: list[str] = []
    page.locator("#model option").first.wait_for(state="attached")
    page.on("request", lambda request: asked.append(request.url))
    page.set_input_files("#file", picture)
    return asked


def test_the_page_says_so(opened: Opened, url: str) -> None:
    page = opened()
    asked = choose(page)
    page.locator("#legend .class").first.wait_for()
    expect(page.locator("#heat-hint")).to_contain_text(NOT_KEPT)
    for part in ("#heat-stage", "#readout", "#faint", "#share", "#problem", "#busy"):
        expect(page.locator(part)).to_be_hidden()
    expect(page.locator("#legend .ask")).to_have_count(0)
    click(page.locator("#mask-stage .panel"), 0.3, 0.7)
    expect(page.locator("#said")).to_contain_text("road")
    page.locator("#mask").fill("0.3")
    expect(page).to_have_url(f"{url}/#mask=0.3&x=143&y=251")  # of the view alone
    shoot(page, "unkept")
    asked_for = [address for address in asked if not address.startswith((f"{url}/web/", "blob:"))]
    assert asked_for == [f"{url}/segment?model=ccnet-mobilenetv2-camvid"]


def test_the_mask_can_be_taken_home(opened: Opened, url: str) -> None:
    page = opened()
    choose(page)
    page.locator(".menu summary").click()
    with page.expect_download() as download:
        page.locator("#downloads a").click()  # the only one
    mask = httpx.post(f"{url}/segment", params={"format": "png"}, content=SAMPLE.read_bytes(), timeout=60).content
    found = Image.open(download.value.path())
    np.testing.assert_array_equal(np.array(found), np.array(Image.open(io.BytesIO(mask))))


def test_models_are_compared_nevertheless(opened: Opened) -> None:
    page = opened()
    choose(page)
    page.locator("#compare").click()
    cards = page.locator("#many .card[data-model]")
    expect(cards).to_have_count(3)
    for card in cards.all():
        expect(card).to_contain_text(NOT_KEPT)
        assert (pixels(card.locator(".overlay"))[..., 3] == 255).all()
    expect(page.locator("#many .disagreement h3 small")).to_contain_text("% of pixels")
    for part in ("#share", "#problem"):
        expect(page.locator(part)).to_be_hidden()


def test_a_format_that_this_browser_does_not_read(opened: Opened, tmp_path: Path) -> None:
    page = opened()
    picture = tmp_path / "street.tiff"
    Image.open(SAMPLE).save(picture)
    choose(page, picture)
    expect(page.locator("#heat-hint")).to_contain_text(NOT_KEPT)
    assert (pixels(page.locator("#mask-stage .overlay"))[..., 3] == 255).all()
    assert (pixels(page.locator("#mask-stage canvas").first)[..., :3] == 0x88).all()
    expect(page.locator("#problem")).to_be_hidden()
