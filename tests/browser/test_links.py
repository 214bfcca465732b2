"""Links: opened where the page already is, and copied where the browser has no clipboard for it."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.browser.conftest import HEAT, Opened, choose, click, point_of, wait_for_cell


def test_a_link_is_opened_in_a_tab_that_has_the_page(opened: Opened) -> None:
    first = opened()
    choose(first)
    click(first.locator("#mask-stage .panel"), 0.31, 0.71)
    wait_for_cell(first.locator(HEAT), 21, 12)
    point_of(first)
    page = opened()
    before = choose(page)
    expect(page).to_have_url(re.compile(f"[#&]ids={before}"))
    page.goto(first.url)  # only the part after the # is another
    wait_for_cell(page.locator(HEAT), 21, 12)
    expect(page).to_have_url(first.url)
    page.go_back()
    wait_for_cell(page.locator(HEAT), 15, 20)
    expect(page).to_have_url(re.compile(f"[#&]ids={before}"))


def test_the_way_back_from_a_new_picture(opened: Opened) -> None:
    page = opened()
    first = choose(page)
    click(page.locator("#mask-stage .panel"), 0.31, 0.71)
    wait_for_cell(page.locator(HEAT), 21, 12)
    page.locator("#another").click()
    expect(page.locator("#start")).to_be_visible()
    page.go_back()
    wait_for_cell(page.locator(HEAT), 21, 12)
    expect(page).to_have_url(re.compile(f"[#&]ids={first}"))
    page.go_forward()
    expect(page.locator("#start")).to_be_visible()
    choose(page)
    page.go_back()
    wait_for_cell(page.locator(HEAT), 21, 12)


def test_a_link_is_copied_where_the_page_comes_from_another_machine(opened: Opened) -> None:
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    choose(page)
    page.evaluate(
        """() => {
          window.clipboard = navigator.clipboard;
          Object.defineProperty(navigator, 'clipboard', { value: undefined }); // as over plain HTTP
        }"""
    )
    page.locator("#share").click()
    expect(page.locator("#share")).to_have_text("Copied")
    expect(page.locator("#share")).to_be_focused()
    assert page.evaluate("clipboard.readText()") == page.url
