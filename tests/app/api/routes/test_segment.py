"""POST /segment: bodies, formats, headers, and every kind of picture."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import shapely
import torch
from PIL import Image, ImageOps
from pycocotools import mask as coco

from app.api.dependencies import Services
from models import create_model, list_models
from models.inference import segment_image
from models.windows import Inference

STAGES = {"read", "decode", "queue", "preprocess", "forward", "postprocess", "encode"}
MODULES = {"stem", "layer1", "layer4", "cca_1", "cca_2", "decoder", "classifier", "upsample_argmax"}
TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "GIF": "image/gif",
}
# What is to be done to an upright picture so that its EXIF orientation undoes it.
ORIENTATIONS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
Decoded = Callable[[bytes], np.ndarray[Any, Any]]
Encoded = Callable[..., bytes]


def turned(image: Image.Image, orientation: int) -> tuple[Image.Image, Image.Exif]:
    """The picture as a camera held that way stores it, and the note that it makes."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    operation = ORIENTATIONS[orientation]
    return (image if operation is None else image.transpose(operation)), exif


@pytest.fixture(scope="session")
def picture(street: bytes, decoded: Decoded) -> Image.Image:
    """A small scene, 40 wide and 24 high, nowhere symmetric."""
    return Image.fromarray(decoded(street)).resize((40, 24))


@pytest.mark.parametrize("image_format", TYPES)
@pytest.mark.parametrize("content_type", ["its own", "with a parameter", "application/octet-stream", None])
async def test_raw_bodies(
    client: httpx.AsyncClient, encoded: Encoded, picture: Image.Image, image_format: str, content_type: str | None
) -> None:
    own = TYPES[image_format]
    sent = {"its own": own, "with a parameter": f"{own.upper()}; name=x"}.get(content_type or "", content_type)
    body = encoded(picture, image_format)
    reply = await client.post("/segment", content=body, headers={"content-type": sent} if sent else {})
    assert reply.status_code == 200, reply.text
    assert reply.json()["image"] == {"width": 40, "height": 24}


@pytest.mark.parametrize("name", ["image/jpg", "image/x-png", "image/bmp"])
async def test_the_bytes_tell_which_image(client: httpx.AsyncClient, street: bytes, name: str) -> None:
    reply = await client.post("/segment", content=street, headers={"content-type": name})
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("field", ["image", "file"])
async def test_forms(client: httpx.AsyncClient, street: bytes, posted: dict[str, Any], field: str) -> None:
    reply = await client.post("/segment", files={field: ("street.png", street)}, data={"note": "ignored"})
    assert reply.status_code == 200
    assert reply.json()["segmentation_mask"] == posted["segmentation_mask"]


async def test_chunks_without_a_length(client: httpx.AsyncClient, street: bytes, posted: dict[str, Any]) -> None:
    async def chunks() -> Any:
        for start in range(0, len(street), 1000):
            yield street[start : start + 1000]

    reply = await client.post("/segment", content=chunks())
    assert "content-length" not in reply.request.headers
    assert reply.json()["segmentation_mask"] == posted["segmentation_mask"]


async def test_formats_agree(
    client: httpx.AsyncClient, services: Services, street: bytes, posted: dict[str, Any], decoded: Decoded
) -> None:
    bodies = {}
    for name in ("png", "palette", "color"):
        reply = await client.post("/segment", content=street, params={"format": name})
        assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
        bodies[name] = reply.content
    ids = decoded(bodies["png"])
    assert (ids.dtype, ids.shape) == (np.uint8, (180, 240))
    assert np.array_equal(decoded(base64.b64decode(posted["segmentation_mask"])), ids)
    assert np.array_equal(decoded(bodies["palette"]), ids)
    palette = np.array(services.engine.models.model(posted["model"]).spec.classes.palette)
    assert np.array_equal(decoded(bodies["color"]), palette[ids])


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [(None, "image/png"), ("image/jpeg", "image/jpeg"), ("image/webp", "image/webp"), ("text/html", "image/png")],
)
async def test_overlay(
    client: httpx.AsyncClient, street: bytes, decoded: Decoded, accept: str | None, media_type: str
) -> None:
    params = {"format": "overlay", "alpha": "0"}
    reply = await client.post("/segment", content=street, params=params, headers={"accept": accept} if accept else {})
    assert (reply.status_code, reply.headers["content-type"]) == (200, media_type)
    difference = np.abs(decoded(reply.content).astype(int) - decoded(street))
    assert difference.max() == 0 if media_type == "image/png" else difference.mean() < 10


@pytest.mark.parametrize(
    ("accept", "media_type", "mode"),
    [("image/png", "image/png", 2), ("image/webp, image/png;q=0.9", "image/webp", 3), ("image/jpeg", "image/jpeg", 3)],
)
async def test_accept_alone_asks_for_a_picture(
    client: httpx.AsyncClient, street: bytes, decoded: Decoded, accept: str, media_type: str, mode: int
) -> None:
    reply = await client.post("/segment", content=street, headers={"accept": accept})
    assert (reply.headers["content-type"], reply.headers["vary"]) == (media_type, "Accept")
    assert decoded(reply.content).ndim == mode


async def test_alpha_one_is_the_colours_alone(client: httpx.AsyncClient, street: bytes, decoded: Decoded) -> None:
    overlay = await client.post("/segment", content=street, params={"format": "overlay", "alpha": "1"})
    color = await client.post("/segment", content=street, params={"format": "color"})
    assert np.array_equal(decoded(overlay.content), decoded(color.content))


async def test_json_is_consistent(services: Services, posted: dict[str, Any], decoded: Decoded) -> None:
    ids = decoded(base64.b64decode(posted["segmentation_mask"]))
    names = services.engine.models.model(posted["model"]).spec.classes.names
    assert posted["class_map"] == {str(index): name for index, name in enumerate(names)}
    assert sum(found["area"] for found in posted["predictions"]) == ids.size
    assert sum(found["fraction"] for found in posted["predictions"]) == pytest.approx(1, abs=1e-5)
    assert [found["class_id"] for found in posted["predictions"]] == np.unique(ids).tolist()
    for found in posted["predictions"]:
        rows, columns = np.nonzero(ids == found["class_id"])
        assert found["class"] == names[found["class_id"]]
        assert found["area"] == len(rows)
        assert 0 < found["confidence"] <= 1
        left, top = found["x"] - found["width"] / 2, found["y"] - found["height"] / 2
        assert (left, left + found["width"]) == (columns.min(), columns.max() + 1)
        assert (top, top + found["height"]) == (rows.min(), rows.max() + 1)


async def test_all_parts_say_the_same(client: httpx.AsyncClient, street: bytes, decoded: Decoded) -> None:
    reply = (await client.post("/segment", content=street, params={"include": "mask,rle,polygons"})).json()
    ids = decoded(base64.b64decode(reply["segmentation_mask"]))
    for found in reply["predictions"]:
        assert np.array_equal(coco.decode(found["rle"]), ids == found["class_id"])
        shapes = [shapely.Polygon(outline, holes) for outline, *holes in found["polygons"]]
        assert sum(shape.area for shape in shapes) == found["area"]


async def test_without_heavy_parts(client: httpx.AsyncClient, street: bytes) -> None:
    reply = (await client.post("/segment", content=street, params={"include": ""})).json()
    assert "segmentation_mask" not in reply
    assert all("rle" not in found and "polygons" not in found for found in reply["predictions"])


async def test_a_part_that_there_is_not(
    client: httpx.AsyncClient, street: bytes, assert_problem: Callable[..., None]
) -> None:
    reply = await client.post("/segment", content=street, params={"include": "mask,boxes"})
    assert_problem(reply, 422, "invalid-parameter")
    assert "no part 'boxes'" in reply.json()["detail"]


async def test_links_work(client: httpx.AsyncClient, street: bytes, posted: dict[str, Any], decoded: Decoded) -> None:
    mask = await client.get(posted["links"]["mask"])
    assert mask.content == base64.b64decode(posted["segmentation_mask"])
    overlay = await client.get(posted["links"]["overlay"])
    assert decoded(overlay.content).shape == (180, 240, 3)
    attention = await client.get(posted["links"]["attention"], params={"x": "0", "y": "0"})
    assert attention.headers["content-type"] == "image/png"


async def test_headers(client: httpx.AsyncClient, street: bytes) -> None:
    reply = await client.post("/segment", content=street)
    assert reply.headers["x-result-id"] == reply.json()["id"]
    assert reply.headers["vary"] == "Accept"
    assert reply.links["attention"]["url"] == reply.json()["links"]["attention"]


async def test_times_are_those_of_the_server_timing_header(client: httpx.AsyncClient, street: bytes) -> None:
    reply = await client.post("/segment", content=street)
    times = reply.json()["timings_ms"]
    parts = [part.split(";dur=") for part in reply.headers["server-timing"].split(", ")]
    assert {name: float(duration) for name, duration in parts} == times
    assert set(times) >= STAGES | {f"module.{name}" for name in MODULES}
    assert all(duration >= 0 for duration in times.values())
    modules = [times[f"module.{name}"] for name in MODULES - {"upsample_argmax"}]
    assert 0 < sum(modules) <= times["forward"]


async def test_without_attention(client: httpx.AsyncClient, street: bytes, assert_problem: Callable[..., None]) -> None:
    reply = await client.post("/segment", content=street, params={"attention": "false"})
    assert "attention" not in reply.json()["links"]
    assert "link" not in reply.headers
    for path in ("", "/info"):
        refused = await client.get(f"/attention/{reply.json()['id']}{path}", params={"x": 0, "y": 0})
        assert_problem(refused, 422, "invalid-parameter")
        assert "attention=false" in refused.json()["detail"]


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
async def test_exif_orientation(
    client: httpx.AsyncClient, encoded: Encoded, picture: Image.Image, image_format: str, orientation: int
) -> None:
    stored, exif = turned(picture, orientation)
    body = encoded(stored, image_format, exif=exif, **({"lossless": True} if image_format == "WEBP" else {}))
    upright = await client.post("/segment", content=encoded(picture), params={"format": "png"})
    reply = await client.post("/segment", content=body, params={"format": "png"})
    assert reply.content == upright.content
    result = reply.headers["x-result-id"]
    overlay = await client.get(f"/results/{result}", params={"format": "overlay", "alpha": "0"})
    original = await client.get(f"/results/{upright.headers['x-result-id']}", params={"format": "overlay", "alpha": 0})
    assert overlay.content == original.content


@pytest.mark.parametrize("orientation", ORIENTATIONS)
async def test_exif_orientation_of_a_jpeg(
    client: httpx.AsyncClient, encoded: Encoded, decoded: Decoded, picture: Image.Image, orientation: int
) -> None:
    stored, exif = turned(picture, orientation)
    body = encoded(stored, "JPEG", exif=exif, quality=95)
    reply = await client.post("/segment", content=body, params={"format": "png"})
    assert decoded(reply.content).shape == (24, 40)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK", "YCbCr"])
async def test_modes(
    client: httpx.AsyncClient, encoded: Encoded, decoded: Decoded, picture: Image.Image, mode: str
) -> None:
    gray = np.array(picture.convert("L"))
    image = Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    assert image.mode == mode
    body = encoded(image, {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG"))
    reply = await client.post("/segment", content=body, params={"format": "overlay", "alpha": "0"})
    assert reply.status_code == 200
    if mode in ("RGBA", "L", "I;16"):
        expected = np.array(picture) if mode == "RGBA" else np.repeat(gray[..., None], 3, axis=2)
        assert np.array_equal(decoded(reply.content), expected)


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
async def test_of_several_frames_the_first_counts(
    client: httpx.AsyncClient, encoded: Encoded, decoded: Decoded, picture: Image.Image, image_format: str
) -> None:
    first, second = picture.convert("L").convert("RGB"), ImageOps.invert(picture)
    lossless = {"lossless": True} if image_format == "WEBP" else {}
    body = encoded(first, image_format, save_all=True, append_images=[second], **lossless)
    reply = await client.post("/segment", content=body, params={"format": "overlay", "alpha": "0"})
    assert np.abs(decoded(reply.content).astype(int) - np.array(first)).max() <= 4


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 5)])
async def test_odd_sizes(client: httpx.AsyncClient, encoded: Encoded, decoded: Decoded, size: tuple[int, int]) -> None:
    reply = await client.post("/segment", content=encoded(Image.new("RGB", size, (90, 90, 90))))
    body = reply.json()
    assert body["image"] == {"width": size[0], "height": size[1]}
    assert decoded(base64.b64decode(body["segmentation_mask"])).shape == size[::-1]
    corner = {"x": size[0] - 1, "y": size[1] - 1}
    assert (await client.get(body["links"]["attention"], params=corner)).status_code == 200


# --- modes, scales, mirror images


@pytest.mark.parametrize(
    ("query", "inference"),
    [
        ({"flip": "true"}, Inference(flip=True)),
        ({"scales": "0.5,1", "flip": "true"}, Inference(scales=(0.5, 1.0), flip=True)),
        ({"mode": "slide", "scales": "2"}, Inference("slide", scales=(2.0,))),
    ],
)
async def test_masks_are_those_of_the_reference_inference(
    client: httpx.AsyncClient, street: bytes, decoded: Callable[..., Any], query: dict[str, str], inference: Inference
) -> None:
    spec = list_models()[0]
    reply = await client.post("/segment", params={"format": "png", "model": spec.name, **query}, content=street)
    assert reply.status_code == 200
    ids, _ = segment_image(create_model(spec.name), torch.from_numpy(decoded(street)), spec.preprocessing, inference)
    assert (decoded(reply.content) == ids.numpy()).mean() > 0.999


async def test_attention_is_kept_if_a_pass_sees_the_image_as_usual(client: httpx.AsyncClient, street: bytes) -> None:
    for query, kept in (({"scales": "0.5,1", "flip": "true"}, True), ({"scales": "0.5,0.75"}, False)):
        reply = (await client.post("/segment", params=query, content=street)).json()
        assert ("attention" in reply["links"]) is kept


async def test_limits_on_what_a_request_may_ask_for(
    client: httpx.AsyncClient, street: bytes, assert_problem: Callable[..., None]
) -> None:
    for query, numbers in (
        ({"scales": "2.5"}, {"limit": 2.0, "actual": 2.5}),
        ({"scales": "0.1"}, {"limit": 0.25}),
        ({"scales": ",".join(["1"] * 65), "flip": "true"}, {"limit": 128, "actual": 130}),
        ({"scales": "a"}, {}),
        ({"mode": "crop"}, {}),
        ({"flip": "maybe"}, {}),
    ):
        reply = await client.post("/segment", params=query, content=street)
        assert_problem(reply, 422, "invalid-parameter", **numbers)
