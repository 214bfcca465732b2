"""One model's view of a picture: mask, attention that follows the point, settings, downloads."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator, expect

from app.colormaps import COLORMAPS
from tests.browser.conftest import (
    COLUMNS,
    HEAT,
    PHOTO,
    ROWS,
    SAMPLE,
    Opened,
    choose,
    click,
    pixels,
    point_of,
    shoot,
    wait_for_cell,
)

MASK = "#mask-stage .panel"
TOLERANCE = 8  # between neighbours in a table of colours
EXACT = "#cells=exact"  # one pixel a cell, so that a map's weights can be read off its colours


def drawn(api: httpx.Client, result: str, **query: Any) -> NDArray[np.int64]:
    """A map as the server draws it, one pixel a cell."""
    reply = api.get(f"/attention/{result}", params={"format": "png", "size": "map", **query})
    return np.array(Image.open(io.BytesIO(reply.content))).astype(int)


def shown(canvas: Locator) -> NDArray[np.int64]:
    return pixels(canvas)[..., :3].astype(int)


def weights_of(api: httpx.Client, result: str, **query: Any) -> NDArray[np.float64]:
    return np.array(api.get(f"/attention/{result}", params={"format": "json", **query}).json()["weights"])


@pytest.mark.parametrize("picture", [SAMPLE, PHOTO], ids=["drawn", "photo"])
def test_the_mask_is_the_servers(opened: Opened, api: httpx.Client, picture: Path) -> None:
    if not picture.exists():
        pytest.skip(f"{picture} is not there")
    page = opened()
    result = choose(page, picture)
    reply = api.get(f"/results/{result}", params={"format": "json"}).json()
    mask = pixels(page.locator("#mask-stage .overlay"))
    right = Image.open(io.BytesIO(api.get(f"/results/{result}", params={"format": "color"}).content))
    np.testing.assert_array_equal(mask[..., :3], np.array(right))
    assert (mask[..., 3] == 255).all()
    shares = {
        one["class"]: f"{100 * one['fraction']:.1f} %" if one["fraction"] >= 0.001 else "< 0.1 %"
        for one in reply["predictions"]
    }
    assert picture != SAMPLE or "< 0.1 %" in shares.values()
    rows = page.locator("#legend .class").all_inner_texts()
    assert dict(row.split("\n") for row in rows) == shares
    shoot(page, f"page-{picture.stem}")


def test_a_picture_is_shown_as_the_network_sees_it(opened: Opened, tmp_path: Path) -> None:
    street = Image.open(SAMPLE).convert("RGB")
    right = np.array(street)
    street.putalpha(Image.new("L", street.size, 0))  # which the server drops
    street.save(tmp_path / "clear.png")
    page = opened()
    choose(page, tmp_path / "clear.png")
    ground = pixels(page.locator("#mask-stage canvas").first)
    assert (ground[..., 3] == 255).all()
    assert np.abs(ground[..., :3].astype(int) - right).mean() < TOLERANCE


def test_the_map_is_the_servers_and_follows_the_click(opened: Opened, api: httpx.Client) -> None:
    page = opened(EXACT)
    result = choose(page)
    maps = []
    for across, down in ((0.31, 0.82), (0.81, 0.55)):
        click(page.locator(MASK), across, down)
        wait_for_cell(page.locator(HEAT), int(down * ROWS), int(across * COLUMNS))
        maps.append(shown(page.locator(HEAT)))
        # Halves may be rounded to either side: to the next colour of the table.
        assert np.abs(maps[-1] - drawn(api, result, **point_of(page))).max() <= TOLERANCE
    assert (maps[0] != maps[1]).any()


def test_the_map_follows_a_drag(opened: Opened) -> None:
    page = opened()
    choose(page)
    box = page.locator(MASK).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.6 * box["height"])
    page.mouse.down()
    for column in range(8, 32, 3):
        page.mouse.move(box["x"] + (column + 0.5) / COLUMNS * box["width"], box["y"] + 0.61 * box["height"])
        wait_for_cell(page.locator(HEAT), int(0.61 * ROWS), column)
    page.mouse.up()


def test_small_multiples_of_criss_cross_attention(opened: Opened, api: httpx.Client) -> None:
    page = opened(EXACT)
    result = choose(page)
    click(page.locator(MASK), 0.52, 0.72)
    wait_for_cell(page.locator(HEAT), 21, 20)
    point = point_of(page)
    tiles = page.locator("#tiles .tile")
    assert [text.strip() for text in tiles.all_inner_texts()] == ["Step 1", "Step 2", "Composed", "Rollout"]
    queries = [{"step": "1"}, {"step": "2"}, {"step": "composed"}, {"compose": "rollout"}]
    for tile, query in zip(tiles.all(), queries, strict=True):
        assert tile.locator(".cross rect").count() == 2
        right = drawn(api, result, **query, **point)
        assert np.abs(shown(tile.locator(".overlay")) - right).max() <= TOLERANCE
    tiles.nth(0).click()
    page.locator(f'{HEAT}[data-map="cca:1"]').wait_for()
    off_cross = pixels(page.locator(HEAT))[..., :3].copy()
    off_cross[21] = off_cross[:, 20] = COLORMAPS["inferno"][0]
    assert (off_cross == COLORMAPS["inferno"][0]).all()


def test_the_four_grids_of_pyramid_attention(opened: Opened, api: httpx.Client) -> None:
    page = opened("#cells=exact&model=ann-mobilenetv2-camvid")
    result = choose(page)
    click(page.locator(MASK), 0.52, 0.72)
    wait_for_cell(page.locator(HEAT), 21, 20)
    levels = api.get(f"/attention/{result}", params={"format": "json", "block": "apnb", **point_of(page)}).json()[
        "levels"
    ]
    for level, share in levels.items():
        tile = page.locator(f'#tiles .tile:has(input[value="apnb:{level}"])')
        assert shown(tile.locator(".overlay")).shape[:2] == (int(level), int(level))
        said = float(tile.locator("small").inner_text().rstrip("\u00a0%"))
        assert said == pytest.approx(100 * share, rel=0.06)
    page.locator('#tiles .tile:has(input[value="apnb:8"])').click()
    page.locator(f'{HEAT}[data-map="apnb:8"]').wait_for()
    expect(page.locator("#reads-sum")).not_to_have_text("100.0 %")  # one scale's part
    shoot(page, "page-pyramid")


def test_settings_change_the_picture(opened: Opened, api: httpx.Client) -> None:
    page = opened(EXACT)
    result = choose(page)
    point = point_of(page)
    page.locator("#clip").fill("80")
    page.locator("#colors").select_option("viridis")
    for norm in ("rank", "log", "sum", "max"):
        page.locator("#norm").select_option(norm)
        right = drawn(api, result, **point, clip=80, colormap="viridis", norm=norm)
        assert np.abs(shown(page.locator(HEAT)) - right).max() <= TOLERANCE, norm
        expect(page.locator("#clip")).to_be_enabled(enabled=norm in ("log", "max"))  # others have no end to clip
    page.locator("#heat").fill("0.3")
    expect(page.locator(HEAT)).to_have_css("opacity", "0.3")
    page.locator("#cells").select_option("smooth")
    assert pixels(page.locator(HEAT)).shape[1] > COLUMNS
    before = (pixels(page.locator("#mask-stage .overlay"))[..., 3] > 0).mean()
    road = page.locator("#legend .class", has_text="road")
    road.click()
    page.mouse.move(0, 0)  # while it is pointed at, a class is shown alone
    expect(road).to_have_attribute("aria-pressed", "false")
    after = (pixels(page.locator("#mask-stage .overlay"))[..., 3] > 0).mean()
    reply = api.get(f"/results/{result}", params={"format": "json"}).json()
    (fraction,) = (one["fraction"] for one in reply["predictions"] if one["class"] == "road")
    assert before - after == pytest.approx(fraction, abs=1e-4)


def test_who_looks_at_the_point(opened: Opened, api: httpx.Client) -> None:
    page = opened(f"{EXACT}&model=nonlocal-mobilenetv2-camvid")
    result = choose(page)
    page.locator("#direction").select_option("to")
    expect(page.locator("#heat-title")).to_have_text("Who looks at the point: Non-local")
    expect(page.locator("#reads-title")).to_have_text("Looked at from")
    right = drawn(api, result, **point_of(page), direction="to")
    assert np.abs(shown(page.locator(HEAT)) - right).max() <= TOLERANCE


def test_who_looks_through_one_grid(opened: Opened, api: httpx.Client) -> None:
    page = opened(f"{EXACT}&model=ann-mobilenetv2-camvid")
    result = choose(page)
    top = "document.querySelector('#settings').getBoundingClientRect().top + scrollY"
    before = page.evaluate(top)
    chosen = page.locator('#tiles .tile:has(input[value="apnb:6"])')
    chosen.click()
    page.locator(f'{HEAT}[data-map="apnb:6"]').wait_for()
    expect(page.locator("#heat-hint")).to_have_text("Through the 6 × 6 grid of anchors alone.")
    assert page.evaluate(top) == before  # no line less
    page.locator("#direction").select_option("to")
    expect(page.locator("#reads-title")).to_have_text("Looked at from")
    expect(page.locator("#tiles .tile:visible")).to_have_count(3)  # all scales of each block, and the chosen one
    expect(chosen.locator("small")).to_have_text("")
    right = drawn(api, result, **point_of(page), direction="to", block="apnb", level="6")
    for canvas in (page.locator(HEAT), chosen.locator(".overlay")):
        assert np.abs(shown(canvas) - right).max() <= TOLERANCE


def test_the_ends_of_the_colours_are_numbers(opened: Opened) -> None:
    page = opened("#norm=log&direction=to")
    choose(page)
    for end, sign in (("start", "≤"), ("end", "≥")):
        expect(page.locator(f"#colors-{end}")).to_have_text(re.compile(rf"^{sign} [\d.]+(e-\d+)?\s%$"))


def test_the_colour_tables_are_the_servers(opened: Opened) -> None:
    page = opened()
    choose(page)
    for name, table in COLORMAPS.items():
        page.locator("#colors").select_option(name)
        np.testing.assert_array_equal(pixels(page.locator("#colors-bar"))[0, :, :3], table)


def test_the_mouse_is_told_class_and_weight(opened: Opened) -> None:
    page = opened()
    choose(page)
    page.locator(MASK).hover(position={"x": 300, "y": 420})
    expect(page.locator(f"{MASK} .tip")).to_have_text("road")
    page.locator("#heat-stage .panel").hover(position={"x": 300, "y": 420})
    expect(page.locator("#heat-stage .tip")).to_have_text(re.compile(r"^[\d<.\s]+% · road$"))
    expect(page.locator("#colors-mark")).to_be_visible()


def test_where_the_time_went(opened: Opened) -> None:
    page = opened()
    with page.expect_response(lambda response: "/segment" in response.url) as reply:
        page.set_input_files("#file", SAMPLE)
    page.locator("#latency .strip").nth(1).wait_for()
    for said in page.locator("#latency b").all_inner_texts():
        assert re.fullmatch(r"(0\.\d+|[1-9]\.\d|[1-9]\d+|0)\sms", said), said
    modules = reply.value.headers["server-timing"].count("module.")
    assert page.locator("#latency .latency").nth(1).locator("li").count() == modules > 8
    assert page.locator("#latency .segment.attention").count() == 2  # cca_1, cca_2


def test_downloads_are_what_is_shown(opened: Opened, api: httpx.Client) -> None:
    page = opened()
    result = choose(page)
    weights = weights_of(api, result, **point_of(page))
    page.locator(".menu summary").click()
    files = {}
    for title in ("Mask, class ids", "Attention, the weights", "Attention, all numbers", "Attention over the picture"):
        with page.expect_download() as download:
            page.locator("#downloads a", has_text=title).click()
        files[title] = Path(download.value.path()).read_bytes()
    assert files["Mask, class ids"][:4] == files["Attention over the picture"][:4] == b"\x89PNG"
    np.testing.assert_array_equal(np.load(io.BytesIO(files["Attention, the weights"])), weights)
    assert f'"id":"{result}"'.encode() in files["Attention, all numbers"]


def test_a_download_of_a_result_that_is_gone_says_so(opened: Opened, api: httpx.Client) -> None:
    page = opened(refusals=1)
    result = choose(page)
    assert api.delete(f"/results/{result}").is_success
    page.locator(".menu summary").click()
    page.locator("#downloads a", has_text="Mask, class ids").click()
    expect(page.locator("#problem")).to_contain_text("This result is gone.")


def test_attention_of_a_class(opened: Opened, api: httpx.Client) -> None:
    page = opened(EXACT)
    result = choose(page)
    ask = page.get_by_role("button", name="Attention of car")
    ask.click()
    page.locator(f'{HEAT}[data-cell="all"]').wait_for()
    expect(ask).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#heat-title")).to_have_text("Where car looks: Composed")
    expect(page.locator("#reads-class")).to_have_text(re.compile(r"^car, the average over its [\d,]+ pixels$"))
    expect(page.locator("#mask-stage .ring")).to_be_hidden()
    queries = [{"step": "1"}, {"step": "2"}, {"step": "composed"}, {"compose": "rollout"}]
    for tile, query in zip(page.locator("#tiles .tile").all(), queries, strict=True):
        right = drawn(api, result, **{"class": "car"}, **query)
        assert np.abs(shown(tile.locator(".overlay")) - right).max() <= TOLERANCE
    shoot(page, "page-class")
    expect(page).to_have_url(re.compile(r"[#&]class=car(&|$)"))
    again = opened(page.url.split("/")[-1])
    again.locator(f'{HEAT}[data-cell="all"]').wait_for()
    page.locator("#compare").click()
    page.locator('#many .overlay[data-cell="all"]').nth(2).wait_for()
    page.locator("#compare").click()
    page.locator(f'{HEAT}[data-cell="all"]').wait_for()
    click(page.locator(MASK), 0.52, 0.72)  # and a point again
    wait_for_cell(page.locator(HEAT), 21, 20)
    expect(ask).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#reads-cell")).to_be_visible()


def test_opacity(opened: Opened) -> None:
    page = opened()
    choose(page)
    for slider, overlay in (("#mask", "#mask-stage .overlay"), ("#heat", HEAT)):
        page.locator(slider).fill("0.2")
        expect(page.locator(overlay)).to_have_css("opacity", "0.2")
        page.locator(slider).press("ArrowRight")
        expect(page.locator(overlay)).to_have_css("opacity", "0.25")
