"""What is seen at first sight: hints, words, colours and alignment."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator, Page, Route, expect

from tests.browser.conftest import HEAT, SAMPLE, Opened, choose, pixels, point_of, shoot

PHONE: dict[str, Any] = {"viewport": {"width": 375, "height": 812}, "has_touch": True, "is_mobile": True}
BRIGHT = 0x40  # of a channel
NARROWEST = 320  # pixels: small phones, and windows of 1280 at 400 %


def test_a_map_that_looks_empty_says_why(opened: Opened, api: httpx.Client) -> None:
    page = opened("#cells=exact&norm=max")
    result = choose(page)
    faint = page.locator("#faint")
    reply = api.get(f"/attention/{result}", params={"format": "json", **point_of(page)}).json()
    weights = np.array(reply["weights"])
    ceiling = max(np.percentile(weights[weights > 0], 99), weights.max() / 100)
    seen = weights >= ceiling / 10
    assert 0 < seen.sum() < 0.01 * weights.size
    assert weights[seen].sum() > 0.95
    expect(faint).to_contain_text(f"Nearly all of it lies on {seen.sum()} of 1,200 cells")
    expect(faint).not_to_contain_text("percentile")  # which would change nothing
    before = (pixels(page.locator(HEAT))[..., :3].max(-1) > BRIGHT).sum()
    by_log = (np.log10(weights / ceiling) > -3.6).sum()
    assert by_log <= 0.01 * weights.size  # so that is no way
    faint.get_by_role("button", name="see the rest by rank").click()
    expect(page.locator("#norm")).to_have_value("rank")
    expect(page.locator("#norm")).to_be_focused()
    after = (pixels(page.locator(HEAT))[..., :3].max(-1) > BRIGHT).sum()
    assert after > 10 * before
    expect(faint).to_be_hidden()


def test_a_slider_that_hides_most_of_a_map_is_told(opened: Opened) -> None:
    page = opened("#clip=100")
    choose(page)
    page.get_by_role("button", name="Attention of building").click()
    page.locator(f'{HEAT}[data-cell="all"]').wait_for()
    expect(page.locator("#faint")).to_contain_text("lower the clip percentile, or")
    page.get_by_role("button", name="see the rest by logarithm").click()
    expect(page.locator("#faint")).to_be_hidden()


def test_a_map_of_many_cells_needs_no_hint(opened: Opened) -> None:
    page = opened("#model=ann-mobilenetv2-camvid")
    choose(page)
    expect(page.locator("#heat-hint")).to_be_visible()
    expect(page.locator("#faint")).to_be_hidden()


def luminance(color: NDArray[np.uint8]) -> NDArray[np.float64]:
    """[..., 3] sRGB to [...] as WCAG defines it."""
    share = color / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ np.array([0.2126, 0.7152, 0.0722]))


def contrast_at_edge(page: Page, swatch: Locator) -> float:
    """The most contrast with the page within a pixel of the swatch's left edge, at half its height."""
    swatch.scroll_into_view_if_needed()
    box = swatch.bounding_box()
    assert box is not None
    clip = {"x": box["x"] - 4, "y": box["y"] + box["height"] / 2, "width": 6, "height": 1}
    row = luminance(np.array(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB"))[0])
    return float(((np.maximum(row, row[0]) + 0.05) / (np.minimum(row, row[0]) + 0.05)).max())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (16, 17, 20), (246, 245, 242)])
def test_colours_like_the_pages_own_are_outlined(opened: Opened, scheme: str, color: tuple[int, int, int]) -> None:
    page = opened(color_scheme=scheme)

    def recolor(route: Route) -> None:
        models = route.fetch().json()
        for model in models:
            for one in model["classes"]:
                one["color"] = color
        route.fulfill(json=models)

    page.route("**/models", recolor)
    page.reload()
    choose(page)
    page.mouse.move(0, 0)
    for kind in ("#legend .swatch", "#legend .bar", "#reads-classes .swatch"):
        assert contrast_at_edge(page, page.locator(kind).first) >= 3, kind  # WCAG 2.2, 1.4.11


def test_in_the_systems_high_contrast(opened: Opened, api: httpx.Client) -> None:
    page = opened(forced_colors="active", reduced_motion="reduce")  # a page that fades in has other colours
    choose(page)
    classes = api.get("/models/ccnet-mobilenetv2-camvid").json()["classes"]
    (road,) = (one["color"] for one in classes if one["name"] == "road")
    swatch = page.locator("#legend .class", has_text="road").locator(".swatch").screenshot()
    picture = np.array(Image.open(io.BytesIO(swatch)).convert("RGB"))
    assert picture[picture.shape[0] // 2, picture.shape[1] // 2].tolist() == road
    mark = page.locator("#mask-stage .ring").evaluate("ring => getComputedStyle(ring, '::after').borderTopColor")
    assert mark == "rgb(255, 255, 255)"  # edged in black, so that it is seen on any map
    ask = page.locator("#legend .ask").first
    ask.click()
    for chosen, other in ((ask, page.locator("#legend .ask").last), tuple(page.locator(".tile .panel").all()[2:])):
        expect(chosen).to_have_css("outline-style", "solid")
        expect(other).to_have_css("outline-style", "none")


def said(page: Page) -> str:
    """All that can be seen."""
    return " ".join(page.locator("#start, #work").all_inner_texts()).lower()


def test_a_finger_taps_and_a_mouse_clicks(opened: Opened) -> None:
    page, phone = opened(), opened(**PHONE)
    assert "drop a picture" in said(page)
    assert "drop" not in said(phone)
    for comparing in (False, True):
        for one in (page, phone):
            if not comparing:
                choose(one)
            else:
                one.locator("#compare").click()
                one.locator("#many .overlay[data-cell]").nth(2).wait_for()
        assert "click" in said(page)
        assert "tap" in said(phone)
        assert " tap" not in f" {said(page)}"
        for word in ("click", "arrow keys", "point at it"):
            assert word not in said(phone)


def test_a_class_that_is_far_below_its_map(opened: Opened) -> None:
    phone = opened(**PHONE)
    choose(phone)
    phone.locator("#legend .ask").last.tap()
    phone.locator(f'{HEAT}[data-cell="all"]').wait_for()
    expect(phone.locator(HEAT)).to_be_in_viewport(ratio=1)


def test_nothing_overlaps_in_the_narrowest_window(opened: Opened) -> None:
    page = opened(viewport={"width": NARROWEST, "height": 600})
    choose(page)
    overlapping = page.evaluate(
        """() => ['#settings label > *', '#legend .name, #legend .share, #legend .ask', '.tile span'].flatMap(what => {
          const boxes = [...document.querySelectorAll(what)].map(one => {
            const words = document.createRange();
            words.selectNodeContents(one);
            return { one, box: (one.matches('input, select, button') ? one : words).getBoundingClientRect() };
          });
          const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
            && a.top < b.bottom - 1 && b.top < a.bottom - 1;
          return boxes.flatMap((first, at) => boxes.slice(at + 1).filter(second => meet(first.box, second.box))
            .map(second => `${first.one.outerHTML} and ${second.one.outerHTML}`));
        })"""
    )
    assert overlapping == []
    assert page.evaluate("document.documentElement.scrollWidth") == NARROWEST


@pytest.mark.parametrize("width", [NARROWEST, 375, 820, 1280])
def test_settings_are_aligned(opened: Opened, width: int) -> None:
    page = opened(viewport={"width": width, "height": 900})
    choose(page)
    labels = page.evaluate(
        """() => [...document.querySelectorAll('#settings label')].map(label => {
          const [box, control] = [label, label.querySelector('input, select')].map(one => one.getBoundingClientRect());
          const words = document.createRange();
          words.selectNode(label.firstChild);
          const value = label.querySelector('.value')?.getBoundingClientRect();
          return { top: box.top, left: box.left, right: box.right, lines: words.getClientRects().length,
            words: words.getBoundingClientRect().right, middle: control.top + control.height / 2,
            from: control.left, to: control.right, value: value && [value.left, value.right] };
        })"""
    )
    form = page.locator("#settings").bounding_box()
    assert form is not None
    rows = [[one for one in labels if one["top"] == top] for top in sorted({one["top"] for one in labels})]
    for row in rows:
        assert len({round(one["middle"]) for one in row}) == 1
        for one in row:
            assert one["lines"] == 1
            assert one["from"] == pytest.approx(one["left"], abs=1.5)
            assert one["to"] == pytest.approx(one["right"], abs=1.5)
        # No hole: each row is as wide as the form.
        assert row[0]["left"] - form["x"] == pytest.approx(form["x"] + form["width"] - row[-1]["right"], abs=1.5)
    valued = [one for one in labels if one["value"]]
    assert len(valued) == 3
    for one in valued:  # beside its words, not beside its neighbour's
        assert one["value"][0] - one["words"] < 12
        assert one["value"][1] <= one["right"]
    shoot(page, f"settings-{width}")


@pytest.mark.parametrize("width", [NARROWEST, 375, 820, 1024, 1280])
def test_the_menu_hangs_from_its_button(opened: Opened, width: int) -> None:
    page = opened(viewport={"width": width, "height": 900})
    choose(page)
    page.locator("#menu summary").click()
    button, entries = (page.locator(one).bounding_box() for one in ("#menu summary", "#downloads"))
    assert button is not None
    assert entries is not None
    assert 0 < entries["y"] - (button["y"] + button["height"]) < 10
    assert entries["x"] <= button["x"]
    assert entries["x"] + entries["width"] >= button["x"] + button["width"]
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("width", [700, 820, 1024, 1280])
def test_no_row_of_cards_has_a_hole(opened: Opened, width: int, count: int) -> None:
    page = opened(viewport={"width": width, "height": 900})
    page.route("**/models", lambda route: route.fulfill(json=route.fetch().json()[:count]))
    page.reload()
    choose(page)
    page.locator("#compare").click()
    page.locator("#many .overlay[data-cell]").nth(count - 1).wait_for()
    boxes = [box for card in page.locator("#cards .card").all() if (box := card.bounding_box())]
    assert len(boxes) == count + 1
    ends = {box["y"]: box["x"] + box["width"] for box in boxes}  # of each row's last
    assert list(ends.values()) == pytest.approx([max(ends.values())] * len(ends), abs=1.5)


@pytest.mark.parametrize("early", [False, True], ids=["ready", "before the page is ready"])
def test_a_picture_that_the_browser_does_not_give_out(opened: Opened, *, early: bool) -> None:
    page, held = opened(), []
    page.locator("#model option").first.wait_for(state="attached")
    if early:
        page.route("**/models", lambda route: held.append(route))
        with page.expect_request("**/models"):
            page.reload()
    transfer = page.evaluate_handle(
        """() => {
          const transfer = new DataTransfer();
          transfer.setData('text/uri-list', 'https://elsewhere.example/street.jpg');
          return transfer;
        }"""
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(page.get_by_role("alert")).to_contain_text("Save the picture first, or copy and paste it.")
    for route in held:
        route.continue_()
    expect(page.locator("#start")).to_be_visible()


def test_a_picture_chosen_before_the_scripts_are_there(opened: Opened) -> None:
    page = opened()
    held: list[Route] = []
    page.route("**/web/app.js", lambda route: held.append(route))
    with page.expect_request("**/web/app.js"):
        page.reload(wait_until="commit")
    page.locator("#samples").wait_for()
    page.set_input_files("#file", SAMPLE)
    assert held
    held[0].continue_()
    page.locator(f"{HEAT}[data-cell]").wait_for()
