"""Maps that come late, as those of dense attention over many cells (answers are held back), and maps that fail."""

from __future__ import annotations

import re

from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import HEAT, SAMPLE, Opened, choose, click, wait_for_cell

WAIT = "Computing the attention"
NON_LOCAL = "nonlocal-mobilenetv2-camvid"


class Held:
    """What is asked of a block's attention, held back until it is let go."""

    def __init__(self, page: Page, block: str) -> None:
        self.is_open = False
        self.routes: list[Route] = []
        page.route(lambda url: f"block={block}&" in url, lambda route: self.take(route))

    def take(self, route: Route) -> None:
        if self.is_open:
            route.continue_()
        else:
            self.routes.append(route)

    def let_go(self) -> None:
        self.is_open = True
        while self.routes:
            self.routes.pop().continue_()


def test_each_model_has_its_own_word_of_waiting(opened: Opened) -> None:
    page = opened("#view=many")
    slow, slower = Held(page, "apnb"), Held(page, "nl")
    page.set_input_files("#file", SAMPLE)
    panels = [page.locator("#many .card[data-model]").nth(index).locator(".panel").nth(1) for index in range(3)]
    ccnet, ann, non_local = [(panel.locator(".overlay[data-cell]"), panel.locator(".wait")) for panel in panels]
    ccnet[0].wait_for()  # and waits for no other
    for overlay, wait in (ann, non_local):
        expect(wait).to_have_text(WAIT)
        expect(overlay).to_have_count(0)
    expect(ccnet[1]).to_be_hidden()
    slow.let_go()
    ann[0].wait_for()
    expect(ann[1]).to_be_hidden()
    expect(non_local[1]).to_be_visible()
    slower.let_go()
    non_local[0].wait_for()
    expect(non_local[1]).to_be_hidden()


def test_a_slow_map_of_one_view_and_one_of_the_other(opened: Opened) -> None:
    page = opened(f"#model={NON_LOCAL}")
    choose(page)
    held = Held(page, "nl")
    page.get_by_role("button", name="Attention of car").click()
    expect(page.locator("#heat-stage .wait")).to_have_text(WAIT)
    page.locator("#compare").click()
    wait = page.locator(f'#many .card[data-model="{NON_LOCAL}"] .wait').last
    expect(wait).to_have_text(WAIT)
    assert len(held.routes) == 2
    held.routes.pop(0).continue_()  # of the first view
    page.locator("#heat-stage .overlay[data-cell=all]").wait_for(state="attached")
    expect(wait).to_be_visible()
    held.let_go()
    page.locator('#many .overlay[data-cell="all"]').nth(2).wait_for()
    expect(wait).to_be_hidden()


def test_the_point_moves_at_once(opened: Opened) -> None:
    page = opened(f"#model={NON_LOCAL}")
    choose(page)
    held = Held(page, "nl")
    ring = page.locator("#heat-stage .ring")
    panel = page.locator("#mask-stage .panel")
    click(panel, 0.25, 0.75)
    expect(page.locator("#heat-stage .wait")).to_have_text(WAIT)
    click(panel, 0.75, 0.52)  # while the first is awaited
    expect(ring).to_have_attribute("style", re.compile(r"^left: 75\.\d+%; top: 5[12]\."))
    held.let_go()
    wait_for_cell(page.locator(HEAT), 15, 30)


def test_a_point_chosen_while_the_one_before_fails_is_shown(opened: Opened) -> None:
    page = opened(f"#model={NON_LOCAL}", refusals=1)
    choose(page)
    held = Held(page, "nl")
    panel = page.locator("#mask-stage .panel")
    click(panel, 0.25, 0.75)
    expect(page.locator("#heat-stage .wait")).to_have_text(WAIT)
    click(panel, 0.75, 0.52)  # while the first is awaited
    held.is_open = True
    held.routes.pop().abort()
    wait_for_cell(page.locator(HEAT), 15, 30)
    expect(page.locator("#problem")).to_be_hidden()


def test_another_model_waits_for_no_slow_map(opened: Opened) -> None:
    page = opened(f"#model={NON_LOCAL}")
    choose(page)
    held = Held(page, "nl")
    page.get_by_role("button", name="Attention of car").click()
    expect(page.locator("#heat-stage .wait")).to_have_text(WAIT)
    with page.expect_event("requestfailed") as given_up:  # so that the server computes no longer
        page.locator("#model").select_option("ccnet-mobilenetv2-camvid")
    assert given_up.value.url == held.routes[0].request.url
    page.locator(f'{HEAT}[data-map="cca:composed"][data-cell="all"]').wait_for()
    expect(page.locator("#heat-stage .wait")).to_be_hidden()
    expect(page.locator("#problem")).to_be_hidden()


def test_a_connection_that_comes_back(opened: Opened) -> None:
    page = opened(refusals=4)  # one for each of the point's maps
    choose(page)
    # Not by way of the browser's own offline mode: that begins and ends at some time after it has been asked for.
    maps = re.compile("/attention/")
    page.route(maps, lambda route: route.abort("internetdisconnected"))
    click(page.locator("#mask-stage .panel"), 0.31, 0.71)
    expect(page.locator("#problem")).to_contain_text("No connection")
    page.unroute(maps)
    click(page.locator("#mask-stage .panel"), 0.52, 0.71)
    wait_for_cell(page.locator(HEAT), 21, 20)
    expect(page.locator("#problem")).to_be_hidden()
