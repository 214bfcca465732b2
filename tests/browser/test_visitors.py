"""Ways to come with a picture, by keyboard and on a phone; links, and what is said when things go wrong."""

from __future__ import annotations

import base64
import re
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import HEAT, SAMPLE, Opened, choose, click, pixels, shoot, wait_for_cell

# A File of the sample's bytes, as an event brings it.
TRANSFER = """encoded => {
  const bytes = Uint8Array.from(atob(encoded), character => character.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], 'street.jpg', { type: 'image/jpeg' }));
  return transfer;
}"""


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_picture_that_is_dropped_or_pasted(opened: Opened, event: str) -> None:
    page = opened()
    transfer = page.evaluate_handle(TRANSFER, base64.b64encode(SAMPLE.read_bytes()).decode())
    if event == "drop":
        page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    else:
        page.evaluate(
            "clipboardData => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData }))", transfer
        )
    page.locator(f"{HEAT}[data-cell]").wait_for()
    expect(page.locator("#start")).to_be_hidden()


def test_of_several_files_the_first_is_shown(opened: Opened) -> None:
    page = opened()
    transfer = page.evaluate_handle(TRANSFER, base64.b64encode(SAMPLE.read_bytes()).decode())
    transfer.evaluate("transfer => { transfer.items.add(new File(['no picture'], 'notes.txt')); }")
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    page.locator(f"{HEAT}[data-cell]").wait_for()
    expect(page.get_by_role("alert")).to_contain_text("This is street.jpg, the first of the 2 files.")


def test_by_keyboard_alone(opened: Opened) -> None:
    page = opened()
    page.locator("#model option").first.wait_for(state="attached")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.src"):
            break
    page.keyboard.press("Enter")  # a sample
    page.locator(f"{HEAT}[data-cell]").wait_for()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('#mask-stage .panel')"):
            break
    wait_for_cell(page.locator(HEAT), 15, 20)
    page.keyboard.press("ArrowRight")
    wait_for_cell(page.locator(HEAT), 15, 21)
    page.keyboard.press("Shift+ArrowDown")
    wait_for_cell(page.locator(HEAT), 20, 21)
    expect(page.locator("#said")).to_have_text(re.compile(r"^Point \d+, \d+: .+ Composed attention: "))
    for _ in range(11):  # past the other picture, the settings and the classes, which are one stop
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "map":
            break
    page.keyboard.press("ArrowLeft")
    page.locator(f'{HEAT}[data-map="cca:2"]').wait_for()


def test_classes_by_arrow_keys(opened: Opened) -> None:
    page = opened()
    choose(page)
    buttons = page.locator("#legend button")
    assert [one.get_attribute("tabindex") for one in buttons.all()].count("0") == 1
    buttons.first.focus()
    for key, index in (("ArrowDown", 2), ("ArrowRight", 3), ("ArrowUp", 1), ("ArrowLeft", 0), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        expect(buttons.nth(index)).to_be_focused()
    page.keyboard.press("End")
    expect(buttons.last).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(page.locator("#legend :focus")).to_have_count(0)
    page.keyboard.press("Tab")
    expect(buttons.last).to_be_focused()
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    expect(buttons.first).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.locator(f'{HEAT}[data-cell="all"]').wait_for()


def test_every_control_has_a_name(opened: Opened) -> None:
    page = opened()
    choose(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, [tabindex]')].filter(one =>
             !one.labels?.length && !one.getAttribute('aria-label') && !one.textContent.trim()
             && !one.querySelector('img[alt]')).map(one => one.outerHTML)"""
    )
    assert nameless == []


def test_what_a_screen_reader_hears(opened: Opened) -> None:
    page = opened()
    choose(page)
    expect(page.get_by_role("radio", name="Step 1", exact=True)).to_be_attached()
    settings = page.get_by_role("form", name="How it is drawn")
    expect(settings.get_by_role("slider", name="Mask opacity", exact=True)).to_have_attribute("aria-valuetext", "55 %")
    settings.get_by_label("Mask opacity").press("ArrowRight")
    expect(settings.get_by_role("slider", name="Mask opacity")).to_have_attribute("aria-valuetext", "60 %")
    expect(settings.get_by_role("status")).to_have_count(0)  # a slider says its value itself
    expect(page.get_by_role("region", name="Classes", exact=True)).to_be_visible()
    expect(page.get_by_role("heading", name=re.compile(r"^This request \d"))).to_be_visible()


def test_the_menu_closes(opened: Opened) -> None:
    page = opened()
    choose(page)
    summary, entries = page.locator("#menu summary"), page.locator("#downloads")
    summary.click()
    expect(entries).to_be_visible()
    click(page.locator("#mask-stage .panel"), 0.31, 0.71)
    expect(entries).to_be_hidden()
    summary.press("Enter")
    expect(entries).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Escape")
    expect(entries).to_be_hidden()
    expect(summary).to_be_focused()


def clipped(page: Page) -> list[str]:
    """Words that are cut off, by their own box, by one around them or by the window's edge."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll('body *')].filter(one => {
          const has = [...one.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
          if (!has || !one.checkVisibility() || one.closest('.out-of-sight, .tip, noscript, option')) return false;
          const range = document.createRange();
          range.selectNodeContents(one);
          const text = range.getBoundingClientRect();
          const within = (box) => text.left >= box.left - 1 && text.right <= box.right + 1;
          if (!within({ left: 0, right: innerWidth })) return true;
          for (let box = one; box !== document.body; box = box.parentElement) {
            if (getComputedStyle(box).overflowX !== 'visible' && !within(box.getBoundingClientRect())) return true;
          }
          return getComputedStyle(one).display !== 'inline' && one.scrollWidth > one.clientWidth + 1;
        }).map(one => `${one.tagName} ${one.id} ${one.className}: ${one.textContent.trim()}`)"""
    )
    return found


@pytest.mark.parametrize("width", [375, 820, 1280])
def test_no_word_is_cut_off(opened: Opened, width: int) -> None:
    page = opened(viewport={"width": width, "height": 900})
    assert clipped(page) == []
    choose(page)
    page.locator(".menu summary").click()
    assert clipped(page) == []
    page.locator(".menu summary").click()
    for model, shown in (("ann-mobilenetv2-camvid", "apnb:all"), ("nonlocal-mobilenetv2-camvid", "nl:")):
        page.locator("#model").select_option(model)
        page.locator(f'{HEAT}[data-map="{shown}"]').wait_for()
        assert clipped(page) == []
    page.locator("#direction").select_option("to")
    page.locator("#legend .ask").nth(7).click()  # with a long name
    page.locator(f'{HEAT}[data-cell="all"]').wait_for()
    assert clipped(page) == []
    page.locator("#compare").click()
    page.locator("#many .overlay[data-cell]").nth(2).wait_for()
    assert clipped(page) == []
    headings = [one.bounding_box() for one in page.locator("#many .card h3").all()]
    assert {round(box["height"]) for box in headings if box} == {24}  # of one line each, so that all pictures are level
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(opened: Opened, scheme: str) -> None:
    phone = {"viewport": {"width": 375, "height": 812}, "has_touch": True, "is_mobile": True}
    page = opened(**phone, color_scheme=scheme)
    expect(page.locator("label.camera")).to_be_visible()
    choose(page)
    box = page.locator("#mask-stage .panel").bounding_box()
    assert box is not None
    page.touchscreen.tap(box["x"] + 0.31 * box["width"], box["y"] + 0.71 * box["height"])
    wait_for_cell(page.locator(HEAT), 21, 12)
    shoot(page, f"phone-{scheme}")
    page.locator("#compare").click()
    page.locator("#many .overlay[data-cell]").nth(2).wait_for()
    shoot(page, f"phone-compare-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(16, 17, 20)"
    assert dark == (scheme == "dark")


def test_a_link_restores_the_view(opened: Opened) -> None:
    page = opened()
    choose(page)
    click(page.locator("#mask-stage .panel"), 0.31, 0.71)
    page.locator('#tiles .tile:has(input[value="cca:1"])').click()
    page.locator("#colors").select_option("turbo")
    page.locator(f'{HEAT}[data-map="cca:1"][data-cell="21,12"]').wait_for()
    expect(page).to_have_url(re.compile("[#&]colors=turbo"))  # the last change, and those before it
    again = opened(page.url.split("/")[-1])
    again.locator(f'{HEAT}[data-map="cca:1"][data-cell="21,12"]').wait_for()
    for canvas in (HEAT, "#mask-stage .overlay"):
        np.testing.assert_array_equal(pixels(again.locator(canvas)), pixels(page.locator(canvas)))
    again.locator("#model").select_option("nonlocal-mobilenetv2-camvid")  # without the file: from the server's copy
    again.locator('#heat-stage .overlay[data-map="nl:"]').wait_for()


def test_the_link_is_copied(opened: Opened) -> None:
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    choose(page)
    click(page.locator("#mask-stage .panel"), 0.31, 0.71)
    wait_for_cell(page.locator(HEAT), 21, 12)
    page.locator("#share").click()
    expect(page.locator("#share")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.url
    again = opened(copied.split("/")[-1])
    wait_for_cell(again.locator(HEAT), 21, 12)


def test_progress_is_told(opened: Opened) -> None:
    page = opened()
    page.locator("#model option").first.wait_for(state="attached")
    page.evaluate(
        """() => {
          window.told = [];
          new MutationObserver(() => window.told.push([document.querySelector('#status').textContent,
            document.querySelector('#progress').getAttribute('value')])).observe(
            document.querySelector('#busy'), { childList: true, subtree: true, attributes: true });
        }"""
    )
    held: list[Route] = []
    page.route("**/segment?*", lambda route: held.append(route))
    page.set_input_files("#file", SAMPLE)
    expect(page.locator("#busy")).to_be_visible()
    expect(page.locator("#status")).to_have_text("Uploading")
    deadline = time.monotonic() + 60
    while not held and time.monotonic() < deadline:  # the text comes before the browser's word of the request
        page.wait_for_timeout(10)
    held[0].continue_()
    page.locator(f"{HEAT}[data-cell]").wait_for()
    expect(page.locator("#busy")).to_be_hidden()
    told = page.evaluate("window.told")
    texts = list(dict.fromkeys(text for text, _ in told))
    assert texts == ["Reading the picture", "Uploading", "CCNet, MobileNetV2, CamVid is at work", ""]
    assert ["Uploading", "0"] in told


def test_a_link_to_a_result_that_is_gone(opened: Opened, api: httpx.Client) -> None:
    page = opened()
    result = choose(page)
    assert api.delete(f"/results/{result}").is_success
    expect(page).to_have_url(re.compile(f"[#&]ids={result}"))
    later = opened(f"{page.url.split('/')[-1]}&clip=80", refusals=1)
    expect(later.locator("#problem")).to_contain_text("This result is gone.")
    expect(later.locator("#start")).to_be_visible()
    shoot(later, "expired")
    choose(later)
    expect(later.locator("#problem")).to_be_hidden()
    assert later.locator("#clip").input_value() == "80"


def test_a_result_that_goes_while_the_picture_is_here_is_made_again(opened: Opened, api: httpx.Client) -> None:
    page = opened(refusals=4)  # one for each of the point's maps
    result = choose(page)
    assert api.delete(f"/results/{result}").is_success
    click(page.locator("#mask-stage .panel"), 0.31, 0.71)
    wait_for_cell(page.locator(HEAT), 21, 12)
    expect(page.locator("#problem")).to_be_hidden()


def test_what_is_no_picture(opened: Opened, api: httpx.Client, tmp_path: Path) -> None:
    page = opened(refusals=1)
    text = tmp_path / "notes.jpg"
    text.write_text("not a picture")
    with page.expect_response(lambda response: "/segment" in response.url) as reply:
        page.set_input_files("#file", text)
    problem = page.locator("#problem")
    refused = api.post("/segment", content=text.read_bytes()).json()
    for said in (refused["title"], refused["detail"], reply.value.headers["x-request-id"]):
        expect(problem).to_contain_text(said)
    expect(page.locator("#busy")).to_be_hidden()
    expect(problem.get_by_role("button", name="Try again")).to_be_hidden()  # the server won't change its mind
    shoot(page, "problem")
    choose(page)  # and all is well
    expect(problem).to_be_hidden()


def test_a_failure_leaves_the_picture_before_as_it_was(opened: Opened, tmp_path: Path) -> None:
    page = opened(refusals=1)
    text = tmp_path / "notes.jpg"
    text.write_text("not a picture")
    result = choose(page)
    page.set_input_files("#file", text)
    expect(page.locator("#problem")).to_contain_text("Unsupported image")
    click(page.locator("#mask-stage .panel"), 0.31, 0.71)
    wait_for_cell(page.locator(HEAT), 21, 12)
    expect(page).to_have_url(re.compile(f"[#&]ids={result}"))
    page.locator("#compare").click()  # the picture that is on show
    page.locator("#many .overlay[data-cell]").nth(2).wait_for()
