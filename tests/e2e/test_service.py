"""The main job, end to end: a real server process, real weights, streets whose every pixel is known."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from models.fused import can_fuse, has_bfloat16
from tests.conftest import Serving
from training.scenes import draw_street

CAMVID = Path(__file__).parents[3] / "shared" / "data" / "camvid"
SEEDS = range(1000, 1006)  # training drew some 1500 of the 2^32 scenes: surely none of these
CLASSES = 11


@pytest.fixture(scope="module")
def client(server_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server_url, timeout=60) as client:
        yield client


def street(seed: int) -> tuple[bytes, NDArray[np.uint8]]:
    image, mask = draw_street(seed)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92)
    return buffer.getvalue(), mask


def segment(client: httpx.Client, seed: int) -> tuple[dict[str, Any], NDArray[np.uint8], NDArray[np.uint8]]:
    """The reply, its mask, and the mask that is right."""
    picture, truth = street(seed)
    body, mask = post(client, picture)
    return body, mask, truth


def post(client: httpx.Client, picture: bytes) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    reply = client.post("/segment", content=picture, headers={"Content-Type": "image/jpeg"})
    assert reply.status_code == 200, reply.text
    body = reply.json()
    return body, np.array(Image.open(io.BytesIO(base64.b64decode(body["segmentation_mask"]))))


def intersection_over_union(pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> NDArray[np.float64]:
    """By class, over all pairs of truth and mask; pixels whose truth is no class don't count."""
    confusion = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    for truth, mask in pairs:
        named = truth < CLASSES
        np.add.at(confusion, (truth[named], mask[named]), 1)
    hits = confusion.diagonal()
    with np.errstate(invalid="ignore"):  # a class that is nowhere has none
        iou: NDArray[np.float64] = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    return iou


def test_masks_are_right(client: httpx.Client) -> None:
    results = [segment(client, seed) for seed in SEEDS]
    iou = intersection_over_union((truth, mask) for _, mask, truth in results)
    named = dict(zip(("sky", "building", "pole", "road", "pavement", "tree"), iou, strict=False))
    assert min(named["sky"], named["building"], named["road"], named["tree"]) > 0.8
    assert np.nanmean(iou) > 0.6


@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"CamVid is not at {CAMVID}")
def test_masks_of_real_streets_are_right(client: httpx.Client) -> None:
    pairs = []
    for name in (CAMVID / "test.txt").read_text().split()[:12]:
        truth = np.array(Image.open(CAMVID / "testannot" / f"{name}.png"))
        _, mask = post(client, (CAMVID / "test" / f"{name}.jpg").read_bytes())
        pairs.append((truth, mask))
    assert np.nanmean(intersection_over_union(pairs)) > 0.5


def test_a_pixel_looks_along_its_cross_and_in_two_steps_beyond(client: httpx.Client) -> None:
    body, _, _ = segment(client, 1000)
    beyond = []
    for x, y in [(0, 0), (479, 359), *product(range(10, 480, 40), (100, 164, 180, 196, 260))]:
        maps = {}
        for step in ("1", "2", "composed"):
            query = {"x": x, "y": y, "step": step, "format": "json"}
            reply = client.get(body["links"]["attention"], params=query).json()
            maps[step] = np.array(reply["weights"])
            assert maps[step].sum() == pytest.approx(1, abs=1e-9)
        off_cross = np.ones_like(maps["1"], dtype=bool)
        off_cross[reply["cell"]["row"]] = off_cross[:, reply["cell"]["column"]] = False
        assert not maps["1"][off_cross].any()
        assert not maps["2"][off_cross].any()
        beyond.append(maps["composed"][off_cross].sum())
    assert max(beyond) > 0.01


@pytest.mark.parametrize("path", ["/", "/web/sample.jpg", "/models", "/nowhere"])
def test_a_head_is_a_get_without_its_body(client: httpx.Client, path: str) -> None:
    whole, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert int(head.headers["content-length"]) == len(whole.content) > 0


def test_every_module_of_the_network_is_timed(client: httpx.Client) -> None:
    body, _, _ = segment(client, 1001)
    timed = {name.removeprefix("module.") for name in body["timings_ms"] if name.startswith("module.")}
    assert {"stem", "layer1", "layer4", "reduction", "cca_1", "cca_2", "classifier", "upsample_argmax"} <= timed
    families = text_string_to_metric_families(client.get("/metrics").text)
    family = next(family for family in families if family.name == "seglens_module_duration_seconds")
    assert {sample.labels["module"] for sample in family.samples} == timed
    forward = body["timings_ms"]["forward"]
    modules = sum(body["timings_ms"][f"module.{name}"] for name in timed - {"upsample_argmax"})
    # One clock for all; each number is rounded to a microsecond.
    assert 0 < modules <= forward + 0.001 * len(timed)


@pytest.mark.skipif(not (can_fuse() and has_bfloat16()), reason="this CPU, or torch, has no bfloat16")
def test_precision_is_as_set_and_masks_hardly_depend_on_it(client: httpx.Client, serving: Serving) -> None:
    with serving(precision="float32", models="ccnet-mobilenetv2-camvid") as exact:
        assert "bfloat16" not in exact.log.read_text()
        with httpx.Client(base_url=exact.url, timeout=60) as other:
            for seed in SEEDS[:2]:
                picture, _ = street(seed)
                mask, want = post(client, picture)[1], post(other, picture)[1]
                assert 0.999 < (mask == want).mean() < 1
