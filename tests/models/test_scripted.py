from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from models import strips
from models.folding import fold_batch_norm
from models.fused import FusedConv, can_fuse, fuse_convolutions, has_bfloat16
from models.ops.scripting import can_script
from models.scripted import Scripted, script_stages
from models.segmentor import Segmentor
from models.strips import run_in_strips

pytestmark = [
    pytest.mark.skipif(not can_fuse(), reason="this torch has no fused convolutions"),
    pytest.mark.skipif(not can_script(), reason="torch supports no TorchScript on this Python"),
]
bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16")

BACKBONES = "resnet", "mobilenet", "edgetpu"


def fused(build: Callable[[str, str], Segmentor], backbone: str, *, reduced: bool) -> Segmentor:
    segmentor = build(backbone, "ccnet")
    fold_batch_norm(segmentor)
    segmentor.use_channels_last()
    fuse_convolutions(segmentor, torch.randn(1, 3, 64, 48), reduced=reduced)
    run_in_strips(segmentor)
    return segmentor


def scripted(segmentor: Segmentor) -> Segmentor:
    own = deepcopy_but_for_weights(segmentor)
    script_stages(own)
    return own


def deepcopy_but_for_weights(segmentor: Segmentor) -> Segmentor:
    shared = (*segmentor.parameters(), *(m._convolve for m in segmentor.modules() if isinstance(m, FusedConv)))
    return deepcopy(segmentor, {id(part): part for part in shared})


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("reduced", [False, pytest.param(True, marks=bfloat16)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("worth_it", [0, strips.WORTH_IT], ids=["strips", "whole"])
def test_the_result_is_the_same_to_the_bit(
    tiny_segmentor: Callable[[str, str], Segmentor],
    monkeypatch: pytest.MonkeyPatch,
    backbone: str,
    worth_it: int,
    *,
    reduced: bool,
) -> None:
    monkeypatch.setattr(strips, "WORTH_IT", worth_it)
    monkeypatch.setattr(strips, "STRIP_ELEMENTS", 3000)
    plain = fused(tiny_segmentor, backbone, reduced=reduced)
    fast = scripted(plain)
    # Several times, as TorchScript changes what it runs after the first, and of other sizes afterwards.
    for size in ((1, 64, 48), (1, 64, 48), (1, 64, 48), (2, 65, 80), (1, 33, 17), (1, 1, 1)):
        image = torch.randn(size[0], 3, *size[1:]).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            want, got = plain(image), fast(image)
        assert want.logits.std() > 0
        assert torch.equal(got.logits, want.logits)
        for one, other in zip(got.traces, want.traces, strict=True):
            assert torch.equal(one.query, other.query)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_no_python_runs_within_a_stage(
    tiny_segmentor: Callable[[str, str], Segmentor], monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError

    fast = scripted(fused(tiny_segmentor, backbone, reduced=False))
    monkeypatch.setattr(FusedConv, "forward", refuse)
    monkeypatch.setattr(nn.Sequential, "forward", refuse)
    with torch.inference_mode():
        features = fast.backbone(torch.randn(1, 3, 64, 48))
        with pytest.raises(AssertionError):
            fast.classify(features)  # the head's are seen


def test_stages_can_be_timed(tiny_segmentor: Callable[[str, str], Segmentor]) -> None:
    segmentor = fused(tiny_segmentor, "mobilenet", reduced=False)
    before = list(segmentor.timed_modules().values())
    script_stages(segmentor)
    timed = segmentor.timed_modules()
    assert list(timed.values()) == before
    seen: list[tuple[str, ...]] = []
    for module in timed:
        module.register_forward_hook(lambda module, *_: seen.append(timed[module]))
    with torch.inference_mode():
        segmentor(torch.randn(1, 3, 64, 48))
    assert set(seen) == set(before)


def test_a_stage_that_cannot_be_read_stays_as_it_is(
    tiny_segmentor: Callable[[str, str], Segmentor], caplog: pytest.LogCaptureFixture
) -> None:
    class Unreadable(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return inputs[0]

    segmentor = fused(tiny_segmentor, "mobilenet", reduced=False)
    segmentor.backbone.layer2 = unreadable = Unreadable()
    script_stages(segmentor)
    assert segmentor.backbone.layer2 is unreadable
    assert isinstance(segmentor.backbone.layer3, Scripted)
    assert "layer2 stays in Python" in caplog.text


@pytest.mark.usefixtures("_threads_put_back")
@pytest.mark.parametrize("reduced", [False, pytest.param(True, marks=bfloat16)], ids=["float32", "bfloat16"])
def test_passes_on_several_threads_have_weights_of_their_own(
    tiny_segmentor: Callable[[str, str], Segmentor], *, reduced: bool
) -> None:
    segmentor = fused(tiny_segmentor, "mobilenet", reduced=reduced)
    own = next(part for part in segmentor.backbone.layer4.modules() if isinstance(part, FusedConv))
    dense = torch.randn_like(own.weight.to_dense())
    own.weight_alone = nn.Parameter(dense, requires_grad=False)
    fast, image = scripted(segmentor), torch.randn(1, 3, 64, 48)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with torch.inference_mode():
            found.append(fast(image).logits)
            torch.testing.assert_close(found[-1], segmentor(image).logits)
    assert not torch.equal(*found)
    stages = fast.backbone.layer3, fast.backbone.layer4
    assert [stage.script is stage.script_alone for stage in stages] == [True, False]
