"""Pictures much longer than wide: one whose sides WebP, the format the page likes best, cannot hold, and a tall one."""

from __future__ import annotations

from pathlib import Path

import httpx
from playwright.sync_api import expect

from tests.browser.conftest import HEAT, Opened, choose, pixels
from tests.servers import picture


def test_a_link_to_a_result_shows_its_picture(opened: Opened, api: httpx.Client) -> None:
    result = api.post("/segment", content=picture(200, 16_384, 64)).json()["id"]
    page = opened(f"#ids={result}")
    page.locator(f"{HEAT}[data-cell]").wait_for(timeout=20_000)
    expect(page.locator("#problem")).to_be_hidden()
    ground = pixels(page.locator("#mask-stage canvas").first)[..., :3]
    assert (ground == 200).mean() > 0.9


def test_small_multiples_of_a_tall_picture_are_small(opened: Opened, tmp_path: Path) -> None:
    tall = tmp_path / "tall.png"
    tall.write_bytes(picture(200, 90, 600))
    page = opened()
    choose(page, tall)
    large, small = (page.locator(one).first for one in ("#heat-stage .panel", "#tiles .panel"))
    height = "panel => panel.getBoundingClientRect().height"
    assert small.evaluate(height) < large.evaluate(height) / 2
