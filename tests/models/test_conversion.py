from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from models.card import Card
from models.conversion import convert
from models.errors import CheckpointError
from models.recognition import recognise
from models.registry import ModelSpec, get_spec, load_model
from tests.models.reference import NETWORKS, Sizes, logits_of, random_state, shapes_of

KEPT = ("title", "classes", "preprocessing", "miou", "dataset", "licence", "source", "inference", "align_corners")


def assert_same(before: ModelSpec, after: ModelSpec) -> None:
    assert {field: getattr(after, field) for field in KEPT} == {field: getattr(before, field) for field in KEPT}
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        assert torch.equal(load_model(after)(image).logits, load_model(before)(image).logits)


@pytest.mark.parametrize("network", NETWORKS)
def test_converted_is_the_same_model(network: str, tmp_path: Path) -> None:
    """At uneven widths, with all that only its layout tells: corners, dilation, rounding, slope."""
    path, converted = tmp_path / "theirs.pth", tmp_path / "ours.safetensors"
    state = random_state(shapes_of(network, Sizes((2, 1, 3, 2), (5, 9), (4, 6, 8, 10), 20, 7, 19)))
    torch.save(state, path)
    said = Card(
        title="Mine",
        miou=61.5,
        mode="slide",
        crop=(64, 48),
        stride=(32, 24),
        scales=(0.5, 1.25),
        flip=True,
        licence="CC0",
        source="here",
    )
    spec = recognise(path, said)
    convert(spec, converted)
    assert_same(spec, recognise(converted))
    image = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        logits, expected = load_model(recognise(converted))(image).logits, logits_of(network, state, image)
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_bundled_model_and_where_it_came_from(tmp_path: Path) -> None:
    spec = get_spec("ann-mobilenetv2-camvid")
    convert(spec, tmp_path / "copy.safetensors")
    assert_same(spec, recognise(tmp_path / "copy.safetensors"))
    with safe_open(tmp_path / "copy.safetensors", framework="pt") as file:
        assert file.metadata()["converted_from"] == f"{spec.weights.name}, sha256 {spec.sha256}"
    assert [path.name for path in tmp_path.iterdir()] == ["copy.safetensors"]


def test_what_was_there_is_replaced_only_by_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    path.write_bytes(b"before")
    spec = get_spec("ann-mobilenetv2-camvid")
    with pytest.raises(CheckpointError, match="damaged or changed"):
        convert(replace(spec, sha256="0" * 64), path)
    assert path.read_bytes() == b"before"
    convert(spec, path)
    assert recognise(path).classes == spec.classes


def test_only_to_safetensors_and_not_onto_itself(tmp_path: Path) -> None:
    spec = get_spec("ann-mobilenetv2-camvid")
    with pytest.raises(CheckpointError, match=r"ours\.pth: what is written is safetensors"):
        convert(spec, tmp_path / "ours.pth")
    digest = hashlib.sha256(spec.weights.read_bytes()).hexdigest()
    with pytest.raises(CheckpointError, match="is the model's own file"):
        convert(spec, spec.weights)
    assert hashlib.sha256(spec.weights.read_bytes()).hexdigest() == digest


def test_recurrence_is_kept_as_it_was_said(tmp_path: Path) -> None:
    path, converted = tmp_path / "theirs.pth", tmp_path / "ours.safetensors"
    torch.save(random_state(shapes_of("official_ccnet", Sizes((1, 1, 1, 1), (5, 9), (4, 6, 8, 10), 20, 7, 19))), path)
    spec = recognise(path, Card(recurrence=1))
    convert(spec, converted)
    assert_same(spec, recognise(converted))
    with safe_open(converted, framework="pt") as file:
        assert file.metadata()["recurrence"] == "1"
