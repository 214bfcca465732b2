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


def test_what_is_said_moves_nothing_and_gives_the_focus_back(opened: Opened) -> None:
    page = opened(refusals=9)  # two times one for each of the point's maps, and a picture
    choose(page)
    panel, heat, problem = page.locator("#mask-stage .panel"), page.locator(HEAT), page.locator("#problem")
    again, close = (problem.get_by_role("button", name=name) for name in ("Try again", "Dismiss"))
    refuse(page, "**/attention/*", 503, times=8)
    where = panel.bounding_box()
    panel.press("ArrowRight")
    expect(problem).to_be_in_viewport(ratio=1)
    assert panel.bounding_box() == where
    close.press("Enter")
    expect(problem).to_be_hidden()
    expect(panel).to_be_focused()
    panel.press("ArrowRight")
    expect(problem).to_be_visible()
    again.press("Enter")
    wait_for_cell(heat, 15, 22)
    expect(panel).to_be_focused()
    refuse(page, "**/segment?*", 503)
    page.locator("#model").select_option(ANN)
    expect(problem).to_be_visible()
    page.locator("#another").click()
    expect(problem).to_be_hidden()  # it was about the picture that is left behind


def test_a_click_on_what_is_said_leaves_the_page_where_it_is(opened: Opened) -> None:
    page = opened(refusals=5, viewport={"width": 1280, "height": 600}, reduced_motion="reduce")
    page.locator("#model option").first.wait_for(state="attached")
    refuse(page, "**/segment?*", 503)
    page.set_input_files("#file", SAMPLE)
    close = page.get_by_role("button", name="Dismiss")
    close.click()
    expect(page.locator("#file")).to_be_focused()  # nothing was, before
    choose(page)
    panel = page.locator("#mask-stage .panel")
    refuse(page, "**/attention/*", 503, times=4)
    panel.press("ArrowRight")
    expect(close).to_be_visible()
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    close.hover()
    before = page.evaluate("scrollY")
    assert before > 300
    close.click()
    expect(panel).to_be_focused()
    assert before - page.evaluate("scrollY") < 150  # no more than the page is now shorter


# What has the focus, if it lies behind the problem from its first line on.
COVERED = """() => {
  const { activeElement: one } = document;
  const { left, top, width, height } = one.getBoundingClientRect();
  const above = document.elementFromPoint(left + width / 2, top + Math.min(10, height / 2));
  return above?.closest('#problem') && !one.closest('#problem') ? one.outerHTML : null;
}"""


def test_nothing_that_has_the_focus_lies_behind_what_is_said(opened: Opened) -> None:
    page = opened(refusals=1, viewport={"width": 640, "height": 400}, reduced_motion="reduce")  # of 1280 at 200 %
    choose(page)
    refuse(page, "**/segment?*", 503)
    page.locator("#model").select_option(ANN)
    expect(page.locator("#problem")).to_be_visible()
    for key in ["Tab"] * 20 + ["Shift+Tab"] * 20:
        page.keyboard.press(key)
        assert page.evaluate(COVERED) is None
