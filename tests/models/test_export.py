"""Exported once, run by ONNX Runtime at sizes that the exporter has not seen."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from models.errors import CheckpointError, ModelError
from models.export import Exported, export_onnx
from models.recognition import recognise
from models.registry import ModelSpec, get_spec, load_model
from models.transforms import normalize
from tests.models.reference import Sizes, random_state, shapes_of

# Down to maps that are smaller than a grid of pyramid pooling, and batches of one, which an exporter may take for good.
IMAGES = [(1, 3, 64, 96), (3, 3, 33, 47), (1, 3, 201, 130), (2, 3, 17, 250)]


def assert_runs_right(path: Path, spec: ModelSpec) -> None:
    session = onnxruntime.InferenceSession(path)
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape) == ("image", ["batch", 3, "height", "width"])
    assert (logits.name, logits.shape) == ("logits", ["batch", len(spec.classes.names), "height", "width"])
    network = Exported(load_model(spec), spec).eval()
    for shape in IMAGES:
        # As bright as images are on average: far from it, attention is so sharp that rounding alone moves it.
        x = torch.randn(shape) * network.std + network.mean
        with torch.no_grad():
            expected = network(x)
        got = torch.from_numpy(session.run(None, {"image": x.numpy()})[0])
        assert got.shape == (shape[0], len(spec.classes.names), *shape[2:])
        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max(), shape
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"])["names"] == list(spec.classes.names)


@pytest.mark.parametrize("network", ["ccnet", "official_ann", "pspnet"])
def test_onnx_is_right_at_any_size(network: str, tmp_path: Path) -> None:
    """Criss-cross attention; pyramid attention, aligned corners and blue first; pooled maps resized."""
    torch.save(random_state(shapes_of(network, Sizes(blocks=(1, 1, 1, 1), classes=19))), tmp_path / "model.pth")
    spec = recognise(tmp_path / "model.pth")
    export_onnx(spec, tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.pth"]
    assert_runs_right(tmp_path / "model.onnx", spec)


@pytest.mark.parametrize("bgr", [False, True])
def test_what_is_exported_takes_plain_images(bgr: bool) -> None:
    """Normalising is in it, as `normalize` does it; resizing an image is not."""
    spec = get_spec("ccnet-mobilenetv2-camvid")
    spec = replace(spec, preprocessing=replace(spec.preprocessing, bgr=bgr))
    segmentor = load_model(spec)
    pixels = torch.randint(256, (1, 48, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        logits = Exported(segmentor, spec)(pixels.permute(0, 3, 1, 2).float())
        expected = segmentor(normalize(pixels, spec.preprocessing)).logits
    expected = F.interpolate(expected, (48, 64), mode="bilinear")
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_model_is_not_written_over_itself(tmp_path: Path) -> None:
    torch.save(random_state(shapes_of("fcn", Sizes(blocks=(1, 1, 1, 1), classes=19))), tmp_path / "model.pth")
    before = (tmp_path / "model.pth").read_bytes()
    with pytest.raises(CheckpointError, match=r"model\.pth: is the model's own file"):
        export_onnx(recognise(tmp_path / "model.pth"), tmp_path / "model.pth")
    assert (tmp_path / "model.pth").read_bytes() == before


def test_without_the_packages_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModelError, match="the extra `onnx` has it"):
        export_onnx(get_spec("ann-mobilenetv2-camvid"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
