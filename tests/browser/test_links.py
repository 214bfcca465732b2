"""Links: opened where the page already is, and copied where the browser has no clipboard for it."""

from __future__ import annotations

import re

import httpx
import numpy as np
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import HEAT, Opened, choose, click, pixels, point_of, wait_for_cell


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


@pytest.mark.parametrize("comparing", [False, True], ids=["one", "many"])
def test_of_several_results_one_is_gone(opened: Opened, api: httpx.Client, *, comparing: bool) -> None:
    page = opened()
    first = choose(page)
    page.locator("#compare").click()
    maps = page.locator("#many .overlay[data-cell]")
    maps.nth(2).wait_for()
    click(page.locator("#many .panel").first, 0.31, 0.71)
    wait_for_cell(maps.first, 21, 12)
    point_of(page, "#many .overlay[data-cell]")
    link = page.url.split("/")[-1] if comparing else page.url.split("/")[-1].replace("view=many", "view=one")
    assert api.delete(f"/results/{first}").is_success
    later = opened(link, refusals=1)
    shown = later.locator("#many .overlay[data-cell]" if comparing else HEAT).first
    wait_for_cell(shown, 21, 12)
    expect(later.locator("#problem")).to_be_hidden()
    expect(later.locator("#many .card[data-model]:visible")).to_have_count(3 if comparing else 0)
    np.testing.assert_array_equal(pixels(shown), pixels(maps.first))


def test_a_link_that_was_cut_off(opened: Opened) -> None:
    page = opened("#direction=t&norm=lo&clip=990&heat=0.3&colors=viri")
    choose(page)
    expect(page.locator("#problem")).to_be_hidden()
    shown = {"direction": "from", "norm": "max", "clip": "100", "heat": "0.3", "colors": "inferno"}
    for name, value in shown.items():
        expect(page.locator(f"#{name}")).to_have_value(value)
    expect(page).to_have_url(re.compile("#heat=0.3&clip=100&x="))
