"""What a screen reader is told, and whether it lets the page have its keys."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.browser.conftest import HEAT, Opened, choose, wait_for_cell


def test_pictures_are_sliders(opened: Opened) -> None:
    page = opened()
    choose(page)
    picture = page.get_by_role("slider", name="The mask over the picture")
    expect(picture).to_have_attribute("aria-valuetext", "column 20, row 15 of 40 × 30")
    expect(picture).to_have_attribute("aria-valuenow", str(15 * 40 + 20))
    expect(picture).to_have_attribute("aria-valuemax", str(30 * 40 - 1))
    picture.press("ArrowRight")
    expect(picture).to_have_attribute("aria-valuetext", "column 21, row 15 of 40 × 30")
    page.locator("#legend .ask").first.click()
    expect(picture).to_have_attribute("aria-valuetext", "no point")
    page.locator("#compare").click()
    expect(page.get_by_role("slider", name=re.compile("^(The mask|Attention) of "))).to_have_count(6)


def test_enter_puts_the_point_in_the_middle(opened: Opened) -> None:
    page = opened()
    choose(page)
    panel = page.locator("#heat-stage .panel")
    panel.press("Shift+ArrowRight")
    wait_for_cell(page.locator(HEAT), 15, 25)
    panel.press("Enter")
    wait_for_cell(page.locator(HEAT), 15, 20)


def test_each_view_has_one_heading_above_all(opened: Opened) -> None:
    page = opened()
    heading = page.get_by_role("heading", level=1)
    expect(heading).to_have_text("See what a segmentation network looks at")
    choose(page)
    expect(heading).to_have_text("What the models made of the picture")
    page.locator("#compare").click()
    expect(page.get_by_role("region", name="Models compared")).to_be_visible()
    expect(heading).to_have_count(1)
    expect(page.get_by_role("heading", level=2)).to_have_text("Models compared")
