"""Several models side by side on one picture."""

from __future__ import annotations

import io
import re

import httpx
import numpy as np
from PIL import Image
from playwright.sync_api import Route, expect

from tests.browser.conftest import SAMPLE, Opened, choose, click, pixels, point_of, shoot, wait_for_cell


def test_models_side_by_side(opened: Opened, api: httpx.Client) -> None:
    page = opened()
    choose(page)
    posts: list[str] = []
    page.on("request", lambda request: request.method == "POST" and posts.append(request.url))
    page.locator("#compare").click()
    cards = page.locator("#many .card[data-model]")
    maps = page.locator("#many .overlay[data-cell]")
    maps.nth(2).wait_for()
    click(cards.nth(1).locator(".panel").first, 0.52, 0.72)
    for index in range(3):
        wait_for_cell(maps.nth(index), 21, 20)
    assert [one.get_attribute("data-map") for one in maps.all()] == ["cca:composed", "apnb:all", "nl:"]
    assert len(posts) == 1  # for both models that are missing
    expect(page).to_have_url(re.compile(r"ids=[\w.-]+%2C[\w.-]+%2C[\w.-]+"))
    results = re.search(r"ids=([^&]+)", page.url)
    assert results is not None
    masks = []
    for card, result in zip(cards.all(), results[1].split("%2C"), strict=True):
        shown = pixels(card.locator(".overlay").first)[..., :3]
        right = Image.open(io.BytesIO(api.get(f"/results/{result}", params={"format": "color"}).content))
        np.testing.assert_array_equal(shown, np.array(right))
        masks.append(shown)
    different = np.any([(one != masks[0]).any(-1) for one in masks[1:]], axis=0)
    marked = pixels(page.locator("#many .disagreement .overlay"))[..., 3] > 0
    np.testing.assert_array_equal(marked, different)
    said = page.locator("#many .disagreement h3 small").inner_text()
    assert abs(float(said.split()[0]) - 100 * different.mean()) < 0.06
    shoot(page, "compare")


# Of numbers whose lines end within them.
TORN = r"""() => [...document.querySelectorAll('.reads, #latency small')].flatMap(({ firstChild: text }) =>
  [...text.data.matchAll(/(< ?)?[\d.]+\s(%|ms)/g)].filter(found => {
    const number = document.createRange();
    number.setStart(text, found.index);
    number.setEnd(text, found.index + found[0].length);
    return number.getClientRects().length > 1;
  }).map(([number]) => number))"""


def test_no_number_is_torn_from_its_unit(opened: Opened) -> None:
    page = opened(viewport={"width": 420, "height": 900})
    choose(page)
    page.locator("#compare").click()
    page.locator("#many .overlay[data-cell]").nth(2).wait_for()
    for width in range(320, 420, 5):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(TORN) == []


def test_a_link_restores_the_comparison(opened: Opened) -> None:
    page = opened("#view=many")
    page.set_input_files("#file", SAMPLE)  # at once by all models
    maps = page.locator("#many .overlay[data-cell]")
    maps.nth(2).wait_for()
    click(page.locator("#many .panel").first, 0.31, 0.72)
    wait_for_cell(maps.first, 21, 12)
    point_of(page, "#many .overlay[data-cell]")
    again = opened(page.url.split("/")[-1])
    restored = again.locator("#many .overlay[data-cell]")
    restored.nth(2).wait_for()
    for index in range(3):
        wait_for_cell(restored.nth(index), 21, 12)
        np.testing.assert_array_equal(pixels(restored.nth(index)), pixels(maps.nth(index)))
    again.locator("#compare").click()
    wait_for_cell(again.locator("#heat-stage .overlay"), 21, 12)


def test_a_model_that_is_gone_leaves_the_others(opened: Opened, api: httpx.Client) -> None:
    page = opened()
    choose(page)

    def fail(route: Route) -> None:
        body = api.post(route.request.url, content=SAMPLE.read_bytes()).json()
        gone = body["results"].pop()
        problem = {"type": "model-not-loaded", "title": "Not ready", "status": 503, "detail": "it was unloaded"}
        body["failures"].append({"model": gone["model"], "problem": problem})
        route.fulfill(json=body)

    page.route("**/segment?*", fail)
    page.locator("#compare").click()
    page.locator("#many .overlay[data-cell]").nth(1).wait_for()
    expect(page.locator("#many .card[data-model]")).to_have_count(2)
    expect(page.locator("#problem")).to_contain_text("Non-local, MobileNetV2, CamVid: Not ready")
    expect(page.locator("#problem")).to_contain_text("it was unloaded")


def test_results_that_had_to_make_room(opened: Opened, api: httpx.Client) -> None:
    page = opened("#view=many", refusals=2)
    posts: list[str] = []
    page.on("request", lambda request: request.method == "POST" and posts.append(request.url))

    def crowd(route: Route) -> None:
        body = api.post(route.request.url, content=SAMPLE.read_bytes()).json()
        for gone in body["results"][:2]:
            assert api.delete(f"/results/{gone['id']}").is_success
        route.fulfill(json=body)

    page.route("**/segment?*", crowd)
    page.set_input_files("#file", SAMPLE)
    page.locator("#many .overlay[data-cell]").wait_for()
    expect(page.locator("#many .card[data-model]")).to_have_count(3)
    expect(page.locator("#many .reads", has_text="The server has no room to keep this result")).to_have_count(2)
    for part in ("#share", "#problem"):
        expect(page.locator(part)).to_be_hidden()
    click(page.locator("#many .panel").first, 0.31, 0.72)
    wait_for_cell(page.locator("#many .overlay[data-cell]"), 21, 12)
    assert len(posts) == 1  # and not again and again


def test_results_that_go_while_keys_move_the_point(opened: Opened, api: httpx.Client) -> None:
    page = opened("#view=many", refusals=4)  # of the maps, and of one's anchors
    page.set_input_files("#file", SAMPLE)
    maps = page.locator("#many .overlay[data-cell]")
    maps.nth(2).wait_for()
    expect(page).to_have_url(re.compile(r"ids=[\w.-]+%2C[\w.-]+%2C[\w.-]+"))
    for result in page.url.split("ids=")[1].split("%2C"):
        assert api.delete(f"/results/{result}").is_success
    panel = page.get_by_role("slider", name="Attention of ANN")
    panel.press("ArrowRight")
    wait_for_cell(maps.nth(1), 15, 21)
    expect(panel).to_be_focused()
    page.keyboard.press("ArrowRight")
    wait_for_cell(maps.nth(1), 15, 22)


def test_and_back_to_one(opened: Opened) -> None:
    page = opened()
    choose(page)
    page.locator("#compare").click()
    page.locator("#many .overlay[data-cell]").nth(2).wait_for()
    page.locator("#many .chips button", has_text="road").click()
    page.locator("#compare").click()
    page.locator("#heat-stage .overlay[data-cell]").wait_for()
    expect(page.locator("#many")).to_be_hidden()
    expect(page.locator("#legend button", has_text="road")).to_have_attribute("aria-pressed", "false")


def test_another_model_on_the_same_picture(opened: Opened) -> None:
    page = opened()
    choose(page)
    page.locator("#model").select_option("nonlocal-mobilenetv2-camvid")
    page.locator('#heat-stage .overlay[data-map="nl:"]').wait_for()
    expect(page.locator("#heat-title")).to_have_text("Where the point looks: Non-local")


def test_a_model_that_fails_leaves_the_one_on_show(opened: Opened) -> None:
    page = opened(refusals=1)
    choose(page)
    problem = {"type": "model-not-loaded", "title": "Not ready", "status": 503, "detail": "it was unloaded"}
    page.route("**/segment?*", lambda route: route.fulfill(status=503, json=problem))
    page.locator("#model").select_option("nonlocal-mobilenetv2-camvid")
    expect(page.locator("#problem")).to_contain_text("it was unloaded")
    expect(page.locator("#model")).to_have_value("ccnet-mobilenetv2-camvid")
    click(page.locator("#mask-stage .panel"), 0.31, 0.72)
    wait_for_cell(page.locator("#heat-stage .overlay"), 21, 12)


def test_another_model_is_chosen_while_a_picture_is_on_its_way(opened: Opened, api: httpx.Client) -> None:
    page = opened()
    choose(page)
    other = SAMPLE.with_name("sample-2.jpg")
    held: list[Route] = []
    page.route("**/segment?*", lambda route: held.append(route), times=1)
    with page.expect_request("**/segment?*"):
        page.set_input_files("#file", other)
    page.locator("#model").select_option("nonlocal-mobilenetv2-camvid")
    held[0].continue_()
    page.locator('#heat-stage .overlay[data-map="nl:"][data-cell]').wait_for()
    expect(page.locator("#busy")).to_be_hidden()
    expect(page.locator("#problem")).to_be_hidden()
    query = {"model": "nonlocal-mobilenetv2-camvid", "format": "color"}
    right = Image.open(io.BytesIO(api.post("/segment", params=query, content=other.read_bytes()).content))
    np.testing.assert_array_equal(pixels(page.locator("#mask-stage .overlay"))[..., :3], np.array(right))


def test_another_picture_is_wanted_while_models_are_at_work(opened: Opened) -> None:
    page = opened()
    choose(page)
    held: list[Route] = []
    page.route("**/segment?*", lambda route: held.append(route), times=1)
    with page.expect_request("**/segment?*"):
        page.locator("#compare").click()
    page.locator("#another").click()
    held[0].continue_()
    expect(page.locator("#busy")).to_be_hidden()
    expect(page.locator("#start")).to_be_visible()  # what was asked of the old picture comes no more
    page.set_input_files("#file", SAMPLE.with_name("sample-2.jpg"))
    page.locator("#many .overlay[data-cell]").nth(2).wait_for()
    expect(page.locator("#start")).to_be_hidden()
