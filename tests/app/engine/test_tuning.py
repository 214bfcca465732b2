from __future__ import annotations

import logging
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from app.engine import tuning
from app.engine.tuning import LEAST_AGREEMENT, tune
from models import Segmentor, create_model, get_spec
from models.folding import fold_batch_norm
from models.fused import FusedConv, can_fuse, has_bfloat16
from models.ops.upsample import upsample_argmax
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
    tuned = tune(deepcopy(segmentor), spec, reduced=True)
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
        tuned = tune(folded(MODELS[0]), get_spec(MODELS[0]), reduced=True)
    assert dtypes(tuned) == {torch.float32}
    assert "float32; bfloat16 would give" in caplog.text


@pytest.mark.skipif(not can_fuse(), reason="this torch has no fused convolutions")
def test_float32_where_the_cpu_has_nothing_less_or_the_setting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dtypes(tune(folded(MODELS[0]), get_spec(MODELS[0]), reduced=False)) == {torch.float32}
    monkeypatch.setattr(tuning, "has_bfloat16", lambda: False)
    assert dtypes(tune(folded(MODELS[0]), get_spec(MODELS[0]), reduced=True)) == {torch.float32}


def test_the_plain_network_where_torch_lacks_the_operators(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tuning, "can_fuse", lambda: False)
    segmentor = folded(MODELS[0])
    assert tune(segmentor, get_spec(MODELS[0]), reduced=True) is segmentor
    assert not dtypes(segmentor)
    assert "no fused convolutions" in caplog.text
