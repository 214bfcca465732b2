"""What the server takes a little later: a button sends it again, and nobody has to choose the picture once more."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import HEAT, SAMPLE, Opened, choose, click, wait_for_cell

ANN = "ann-mobilenetv2-camvid"


def refuse(page: Page, address: str, status: int, times: int = 1, **more: Any) -> None:
    problem = {"type": "queue-full", "title": "Busy", "status": status, "detail": "129 would wait"} | more
    page.route(address, lambda route: route.fulfill(status=status, json=problem), times=times)


def test_a_refused_picture_is_sent_again(opened: Opened) -> None:
    page = opened(refusals=1)
    choose(page)
    refuse(page, "**/segment?*", 429, retry_after=2.3)
    page.set_input_files("#file", SAMPLE)
    problem = page.locator("#problem")
    expect(problem).to_contain_text("Busy: 129 would wait; try again in 3 s")
    click(page.locator("#mask-stage .panel"), 0.31, 0.71)  # the picture before
    wait_for_cell(page.locator(HEAT), 21, 12)
    expect(problem).to_be_visible()
    problem.get_by_role("button", name="Try again").click()
    wait_for_cell(page.locator(HEAT), 15, 20)  # the new one, with its point in the middle
    expect(problem).to_be_hidden()


def test_a_model_that_was_busy(opened: Opened) -> None:
    page = opened(refusals=1)
    choose(page)
    refuse(page, "**/segment?*", 503)
    page.locator("#model").select_option(ANN)
    page.get_by_role("button", name="Try again").click()
    page.locator(f'{HEAT}[data-map="apnb:all"]').wait_for()
    expect(page.locator("#model")).to_have_value(ANN)
    expect(page.locator("#problem")).to_be_hidden()


def test_one_of_several_models_was_busy(opened: Opened) -> None:
    page = opened()
    choose(page)

    def without_one(route: Route) -> None:
        reply = route.fetch(post_data=SAMPLE.read_bytes()).json()  # no file comes by itself
        failed = reply["results"].pop()["model"]
        problem = {"title": "Busy", "status": 429, "detail": "129 would wait"}
        route.fulfill(json={**reply, "failures": [{"model": failed, "problem": problem}]})

    page.route("**/segment?*", without_one, times=1)
    page.locator("#compare").click()
    expect(page.locator("#problem")).to_contain_text("Busy: 129 would wait")
    expect(page.locator("#many .card[data-model]")).to_have_count(2)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#many .card[data-model]")).to_have_count(3)


def test_a_server_that_was_not_ready_as_the_page_was_opened(opened: Opened) -> None:
    page = opened(refusals=2)
    refuse(page, "**/models", 503, detail="loading")
    page.reload()
    expect(page.locator("#problem")).to_contain_text("Busy: loading")
    refuse(page, "**/models", 503, detail="still loading")
    page.set_input_files("#file", SAMPLE)
    expect(page.locator("#problem")).to_contain_text("Busy: still loading")
    page.get_by_role("button", name="Try again").click()
    page.locator(f"{HEAT}[data-cell]").wait_for()
    expect(page.locator("#problem")).to_be_hidden()


def test_a_map_that_is_not_the_points_has_no_colours(opened: Opened) -> None:
    page = opened(refusals=4)  # one for each of the point's maps
    choose(page)
    heat = page.locator(HEAT)
    refuse(page, "**/attention/*", 503, times=4)
    click(page.locator("#mask-stage .panel"), 0.31, 0.71)
    expect(page.locator("#problem")).to_contain_text("Busy")
    expect(heat).to_have_css("filter", "grayscale(1)")
    page.get_by_role("button", name="Try again").click()
    wait_for_cell(heat, 21, 12)
    expect(heat).to_have_css("filter", "none")
    expect(page.locator("#problem")).to_be_hidden()
