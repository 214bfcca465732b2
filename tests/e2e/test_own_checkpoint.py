"""A checkpoint of one's own, from the folder to the device and off it again, by a real server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from app.imaging import decode
from models import create_model, get_spec
from models.inference import segment_image
from models.windows import Inference
from tests.conftest import Serving

SAMPLE = (Path(__file__).parents[2] / "app/web/sample.jpg").read_bytes()
CCNET, ANN = get_spec("ccnet-mobilenetv2-camvid"), get_spec("ann-mobilenetv2-camvid")
KEY = {"Authorization": "Bearer a secret"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def client(serving: Serving, folder: Path) -> Iterator[httpx.Client]:
    """A server with one bundled model, and a file in its folder that was there before it started."""
    shutil.copyfile(CCNET.weights, folder / "there-before.safetensors")
    settings = {"admin_key": "a secret", "model_dir": str(folder), "models": "there-before"}
    with serving(**settings) as served, httpx.Client(base_url=served.url, timeout=60) as client:
        yield client


def segmented(client: httpx.Client, model: str, **query: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    reply = client.post("/segment", params={"model": model, "format": "png", **query}, content=SAMPLE)
    assert reply.status_code == 200, reply.text
    return decode(reply.content, 1 << 20)[..., 0]


def states(client: httpx.Client) -> dict[str, str]:
    return {model["name"]: model["state"] for model in client.get("/models").json()}


def test_dropped_loaded_used_and_unloaded(client: httpx.Client, folder: Path) -> None:
    assert states(client)["there-before"] == "ready"
    assert states(client)[ANN.name] == "available"
    shutil.copyfile(ANN.weights, folder / "mine.safetensors")
    assert states(client)["mine"] == "available"
    assert client.post("/segment", params={"model": "mine"}, content=SAMPLE).status_code == 404
    assert client.post("/models/mine/load").status_code == 401
    reply = client.post("/models/mine/load", headers=KEY)
    assert (reply.status_code, reply.json()["state"]) == (200, "ready"), reply.text

    pixels = torch.from_numpy(decode(SAMPLE, 1 << 20))
    for query, inference in (
        ({}, Inference()),
        ({"mode": "slide", "scales": "1,2"}, Inference("slide", scales=(1.0, 2.0))),
    ):
        ids, _ = segment_image(create_model(ANN.name), pixels, ANN.preprocessing, inference)
        assert (segmented(client, "mine", **query) == ids.numpy()).mean() > 0.999

    shutil.copyfile(CCNET.weights, folder / "mine.safetensors")
    assert client.post("/models/mine/load", headers=KEY).status_code == 200
    assert np.array_equal(segmented(client, "mine"), segmented(client, "there-before")), "it is another model now"

    (folder / "mine.safetensors").write_bytes(CCNET.weights.read_bytes()[:100_000])
    reply = client.post("/models/mine/load", headers=KEY)
    assert (reply.status_code, reply.json()["type"]) == (422, "load-failed")
    assert "mine.safetensors" in reply.json()["detail"]
    assert np.array_equal(segmented(client, "mine"), segmented(client, "there-before")), "the old one still serves"

    assert client.post("/models/mine/unload", headers=KEY).status_code == 200
    reply = client.post("/segment", params={"model": "mine"}, content=SAMPLE)
    assert (reply.status_code, reply.json()["type"]) == (503, "model-not-loaded")
    assert states(client)["mine"] == "failed", "its file is broken"
    (folder / "mine.safetensors").unlink()
    assert "mine" not in states(client)
