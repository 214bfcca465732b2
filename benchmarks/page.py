"""How fast the heat map follows the pointer: `python -m benchmarks.page [--seconds S]`.

A real Chromium shows the page of a real server on the same machine. The mouse is dragged over the picture on a path
that comes by no cell twice, faster than a hand would, and each new map on the large canvas is counted. Every map of the
model is fetched and painted meanwhile, the small multiples too. Beside it, what each way to fetch one map takes: as
JSON, as NPY, and as a picture that the server draws. The README's picture of the page is taken on the way.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import httpx
import torch
from playwright.sync_api import Page, sync_playwright

from benchmarks.machine import describe
from benchmarks.server import serving
from models import list_models

SAMPLE = Path(__file__).parents[1] / "app/web/sample.jpg"
RESULTS = Path(__file__).parent / "results" / "page.json"
PICTURE = RESULTS.with_suffix(".jpg")
# Of the picture's width and height: on the street, where the three models look at different things.
POINT = (0.3125, 0.6167)
PORT = 18769
URL = f"http://127.0.0.1:{PORT}"
MOVES = 120  # a second, as a good mouse has them
COUNT = """selector => {
  window.seen = [];
  const note = entries => entries.forEach(({ target, oldValue }) =>
    target.dataset.cell !== oldValue && window.seen.push(performance.now()));
  new MutationObserver(note).observe(document.querySelector(selector),
    { attributes: true, attributeFilter: ['data-cell'], attributeOldValue: true });
}"""
FETCH = """async urls => {
  const taken = [];
  for (const url of urls) {
    const started = performance.now();
    const response = await fetch(url, { cache: 'no-store' });
    if (!response.ok) throw new Error(`${response.status} from ${url}`);
    if (url.includes('format=json')) await response.json();
    else if (url.includes('format=npy')) new Float64Array((await response.arrayBuffer()).slice(128));
    else await createImageBitmap(await response.blob());
    taken.push(performance.now() - started);
  }
  return taken;
}"""


def drag(page: Page, panel: str, overlay: str, seconds: float) -> float:
    """Maps on show per second while the mouse moves over the panel in rows, a cell's height apart."""
    page.evaluate(COUNT, overlay)
    box = page.locator(panel).first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    started, moves = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds:
        across, down = passed % 1, (passed // 1 + 0.5) * 2 / 30  # a row a second
        page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
        moves += 1
        time.sleep(max(0.0, moves / MOVES - (time.perf_counter() - started)))
    page.mouse.up()
    return float(page.evaluate("window.seen.length")) / passed


def measure(page: Page, seconds: float) -> dict[str, Any]:
    rates = {}
    for model in (spec.name for spec in list_models()):
        page.goto("about:blank")
        page.goto(f"{URL}/#model={model}")
        page.set_input_files("#file", SAMPLE)
        page.locator("#heat-stage .overlay[data-cell]").wait_for()
        rates[model] = drag(page, "#mask-stage .panel", "#heat-stage .overlay", seconds)
    page.locator("#compare").click()
    page.locator("#many .overlay[data-cell]").nth(2).wait_for()
    rates["all three, compared"] = drag(page, "#many .panel", "#many .overlay[data-cell]", seconds)
    take_picture(page)
    return {"updates_per_second": {name: round(rate, 1) for name, rate in rates.items()}, "fetch_ms": fetches(page)}


def take_picture(page: Page) -> None:
    """The comparison as it is on show, one point looked at and nothing on its way any more."""
    panel = page.locator("#many .panel").first
    box = panel.bounding_box()
    assert box is not None
    panel.click(position={"x": POINT[0] * box["width"], "y": POINT[1] * box["height"]})
    page.mouse.move(0, 0)
    page.wait_for_load_state("networkidle")
    page.screenshot(path=PICTURE, type="jpeg", quality=80, full_page=True)


def fetches(page: Page) -> dict[str, float]:
    result = httpx.post(f"{URL}/segment", content=SAMPLE.read_bytes(), timeout=60).json()["id"]
    ways = {"JSON": "json", "NPY": "npy", "PNG, a pixel a cell": "png&size=map", "PNG of the picture's size": "overlay"}
    medians = {}
    for way, query in ways.items():
        medians[way] = round(statistics.median(page.evaluate(FETCH, points(result, query))), 1)
    return medians


def points(result: str, query: str) -> list[str]:
    """Addresses of one way to have a map, each of another point."""
    return [f"/attention/{result}?x={10 + 11 * index}&y=200&format={query}" for index in range(40)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of dragging, for each model")
    seconds = parser.parse_args().seconds
    with serving(PORT, DEVICE="cpu"), sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        report = measure(browser.new_page(viewport={"width": 1280, "height": 900}), seconds)
        about = {"machine": {**describe(torch.device("cpu")), "chromium": browser.version}}
        browser.close()
    RESULTS.write_text(json.dumps(about | report, indent=2) + "\n")
    for heading, numbers in report.items():
        print(heading)
        for name, number in numbers.items():
            print(f"  {name:32} {number:6.1f}")


if __name__ == "__main__":
    main()
