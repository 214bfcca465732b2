from __future__ import annotations

import logging
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from app.engine import tuning
from app.engine.tuning import LEAST_AGREEMENT, tune, tune_on_cuda
from models import Segmentor, create_model, get_spec
from models.folding import fold_batch_norm
from models.fused import FusedConv, can_fuse, has_bfloat16
from models.ops.scripting import can_script
from models.ops.upsample import upsample_argmax
from models.scripted import Scripted
from models.transforms import normalize, resize
from training.scenes import draw_street

MODELS = ["ccnet-mobilenetv2-camvid", "ann-mobilenetv2-camvid", "nonlocal-mobilenetv2-camvid"]
bfloat16 = pytest.mark.skipif(not (can_fuse() and has_bfloat16()), reason="this CPU, or torch, has no bfloat16")


def folded(name: str) -> Segmentor:
    segmentor = create_model(name)
    fold_batch_norm(segmentor)
    segmentor.use_channels_last()
    return segmentor


def dtypes(segmentor: Segmentor) -> set[torch.dtype]:
    return {module.weight.dtype for module in segmentor.modules() if isinstance(module, FusedConv)}


def mask(segmentor: Segmentor, image: Tensor) -> Tensor:
    with torch.inference_mode():
        logits = segmentor(image).logits[0]
    return upsample_argmax(logits, (480, 640), (480, 640), align_corners=False)[0]


@bfloat16
@pytest.mark.parametrize("name", MODELS)
def test_masks_of_bundled_models_stay_the_same(name: str) -> None:
    segmentor, spec = folded(name), get_spec(name)
    tuned = tune(deepcopy(segmentor), spec, reduced=True, threads=(1, 2))
    assert dtypes(tuned) == {torch.float32, torch.bfloat16}
    # Other pictures than the one by which it was decided.
    same = []
    for seed in (1, 2):
        street = torch.from_numpy(draw_street(seed)[0])
        image = normalize(resize(street, (480, 640), antialias=True)[None], spec.preprocessing)
        same.append((mask(tuned, image) == mask(segmentor, image)).double().mean().item())
    assert sum(same) / len(same) >= LEAST_AGREEMENT
    assert min(same) < 1  # it was bfloat16 that ran


@bfloat16
def test_a_network_that_does_not_bear_bfloat16_gets_float32(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tuning, "LEAST_AGREEMENT", 1.0)  # as some pixels of any network differ
    with caplog.at_level(logging.INFO, "app.engine.tuning"):
        tuned = tune(folded(MODELS[0]), get_spec(MODELS[0]), reduced=True, threads=(1, 2))
    assert dtypes(tuned) == {torch.float32}
    assert "float32; bfloat16 would give" in caplog.text


@pytest.mark.skipif(not can_fuse(), reason="this torch has no fused convolutions")
def test_float32_where_the_cpu_has_nothing_less_or_the_setting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dtypes(tune(folded(MODELS[0]), get_spec(MODELS[0]), reduced=False, threads=(1, 2))) == {torch.float32}
    monkeypatch.setattr(tuning, "has_bfloat16", lambda: False)
    assert dtypes(tune(folded(MODELS[0]), get_spec(MODELS[0]), reduced=True, threads=(1, 2))) == {torch.float32}


def test_the_plain_network_where_torch_lacks_the_operators(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tuning, "can_fuse", lambda: False)
    segmentor = folded(MODELS[0])
    assert tune(segmentor, get_spec(MODELS[0]), reduced=True, threads=(1, 2)) is segmentor
    assert not dtypes(segmentor)
    assert "no fused convolutions" in caplog.text


@pytest.mark.skipif(not can_fuse(), reason="this torch has no fused convolutions")
def test_the_same_network_where_torch_has_no_torchscript(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "can_script", lambda: False)
    plain = tune(folded(MODELS[0]), get_spec(MODELS[0]), reduced=False, threads=(1, 2))
    assert not any(isinstance(module, Scripted) for module in plain.modules())
    monkeypatch.undo()
    tuned = tune(folded(MODELS[0]), get_spec(MODELS[0]), reduced=False, threads=(1, 2))
    assert any(isinstance(module, Scripted) for module in tuned.modules()) == can_script()
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(plain(image).logits, tuned(image).logits)


# --- as on a GPU, here on the CPU


@pytest.mark.parametrize("agreement", ["stem", "layer2", "none"])
def test_as_much_is_bfloat16_as_the_sample_bears(
    agreement: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    segmentor = folded(MODELS[0])
    least = {"stem": 0.99, "layer2": LEAST_AGREEMENT, "none": 1.0}[agreement]
    monkeypatch.setattr(tuning, "LEAST_AGREEMENT", least)
    with caplog.at_level(logging.INFO, "app.engine.tuning"):
        tuned = tune_on_cuda(segmentor, get_spec(MODELS[0]))
    lower = [name for name, parameter in tuned.backbone.named_parameters() if parameter.dtype == torch.bfloat16]
    assert {name.split(".")[0] for name in lower} == {
        "stem": {"stem", "layer1", "layer2", "layer3", "layer4"},
        "layer2": {"layer2", "layer3", "layer4"},
        "none": set(),
    }[agreement]
    assert (tuned is segmentor) == (agreement == "none")
    assert all(parameter.dtype == torch.float32 for parameter in segmentor.parameters()), "what it was made of"
    street = normalize(torch.from_numpy(draw_street(1)[0])[None], get_spec(MODELS[0]).preprocessing)
    same = (mask(tuned, street) == mask(segmentor, street)).double().mean().item()
    assert same >= min(least, 0.999)
    assert f"{'float32; bfloat16' if agreement == 'none' else 'bfloat16 from ' + agreement}" in caplog.text
