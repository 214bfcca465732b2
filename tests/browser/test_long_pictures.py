"""A panorama whose sides WebP, the format the page likes best, cannot hold."""

from __future__ import annotations

import httpx
from playwright.sync_api import expect

from tests.browser.conftest import HEAT, Opened, pixels
from tests.servers import picture


def test_a_link_to_a_result_shows_its_picture(opened: Opened, api: httpx.Client) -> None:
    result = api.post("/segment", content=picture(200, 16_384, 64)).json()["id"]
    page = opened(f"#ids={result}")
    page.locator(f"{HEAT}[data-cell]").wait_for(timeout=20_000)
    expect(page.locator("#problem")).to_be_hidden()
    ground = pixels(page.locator("#mask-stage canvas").first)[..., :3]
    assert (ground == 200).mean() > 0.9
