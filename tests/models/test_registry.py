from __future__ import annotations

import dataclasses
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from models import registry
from models.errors import CheckpointError, UnknownModel
from models.registry import ModelSpec, create_model, get_spec, list_models

SPECS = pytest.mark.parametrize("spec", list_models(), ids=lambda spec: spec.name)


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A registered model whose weights are a file of our own."""
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"not really weights")
    spec = dataclasses.replace(
        list_models()[0], name="moved", weights=weights, sha256=sha256(weights.read_bytes()).hexdigest()
    )
    monkeypatch.setitem(registry.SPECS, "moved", spec)
    return spec


def test_names_find_their_specs() -> None:
    assert list_models()
    assert [get_spec(spec.name) for spec in list_models()] == list_models()


@pytest.mark.parametrize("look_up", [get_spec, create_model])
def test_an_unknown_name_is_answered_with_the_known_ones(look_up: Callable[[str], object]) -> None:
    with pytest.raises(UnknownModel, match="no model 'unet'") as caught:
        look_up("unet")
    assert all(spec.name in str(caught.value) for spec in list_models())


@SPECS
def test_weights_are_the_published_ones_and_load(spec: ModelSpec) -> None:
    assert sha256(spec.weights.read_bytes()).hexdigest() == spec.sha256
    model = create_model(spec.name)
    assert model.num_classes == len(spec.classes.names)
    assert not model.training
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


@SPECS
def test_a_registered_model_segments_an_image_of_its_size(spec: ModelSpec) -> None:
    width, height = spec.preprocessing.scale
    with torch.no_grad():
        logits = create_model(spec.name)(torch.randn(1, 3, height, width)).logits
    assert logits.isfinite().all()
    assert logits.argmax(1).unique().numel() > 1


@SPECS
def test_every_class_has_a_name_and_a_colour_of_its_own(spec: ModelSpec) -> None:
    names, palette = spec.classes.names, spec.classes.palette
    assert len(names) == len(palette) == len(set(names)) == len(set(palette))
    assert all(0 <= channel <= 255 for color in palette for channel in color)


@SPECS
def test_a_spec_says_where_it_comes_from(spec: ModelSpec) -> None:
    assert 0 < spec.miou < 100
    assert spec.title
    assert spec.dataset
    assert spec.licence
    assert spec.source


def test_changed_weights_are_refused_before_they_are_read(moved: ModelSpec) -> None:
    moved.weights.write_bytes(b"not really weights!")
    with pytest.raises(CheckpointError, match=f"not {moved.sha256}: a damaged or changed file"):
        create_model("moved")


def test_unchanged_weights_pass_the_check(moved: ModelSpec) -> None:
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        create_model("moved")


def test_missing_weights_are_named(moved: ModelSpec) -> None:
    moved.weights.unlink()
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        create_model("moved")
