from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from models import Segmentor
from models.folding import fold_batch_norm
from models.ops.upsample import upsample_argmax
from models.precision import lower_precision, precision_of
from models.segmentor import STAGES

HEADS = ["ann", "ccnet", "danet", "fcn", "gcnet", "non_local", "pspnet"]
BACKBONES = ["resnet", "mobilenet", "edgetpu"]
Make = Callable[[str, str], Segmentor]


def run(segmentor: Segmentor, image: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    with torch.inference_mode():
        logits, traces = segmentor(image.contiguous(memory_format=torch.channels_last))
    return logits, [(trace.query, trace.key) for trace in traces]


def rounded(segmentor: Segmentor) -> Segmentor:
    """In float32, but for its weights, and what each convolution gives: the error that bfloat16 can't be without."""
    copy = deepcopy(segmentor)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.copy_(parameter.bfloat16())
    for module in copy.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: output.bfloat16().float())
    return copy


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm())


@pytest.mark.parametrize(("first", "precision"), [(None, "float32"), ("stem", "bfloat16"), ("layer2", "mixed")])
def test_the_precision_of_a_network_is_told(tiny_segmentor: Make, first: str | None, precision: str) -> None:
    segmentor = tiny_segmentor("resnet", "ccnet")
    fold_batch_norm(segmentor)
    if first is not None:
        lower_precision(segmentor, first)
    assert precision_of(segmentor) == precision


# Random weights on few channels make much of any rounding: an error counts beside that of the least possible.
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_network_loses_no_more_than_bfloat16_must(tiny_segmentor: Make, backbone: str, head: str) -> None:
    segmentor = tiny_segmentor(backbone, head)
    fold_batch_norm(segmentor)
    segmentor.use_channels_last()
    image = torch.randn(2, 3, 65, 97)
    exact, exact_traces = run(segmentor, image)
    least, least_traces = run(rounded(segmentor), image.bfloat16().float())
    lower_precision(segmentor, "stem")
    logits, traces = run(segmentor, image)
    assert logits.dtype == torch.bfloat16
    assert 0 < distance(logits, exact) < 2 * distance(least, exact)
    for those in zip(traces, least_traces, exact_traces, strict=True):
        for trace, least_trace, exact_trace in zip(*those, strict=True):
            assert trace.dtype == torch.bfloat16
            assert distance(trace, exact_trace) < 2 * distance(least_trace, exact_trace)


def test_what_comes_before_stays_in_float32(tiny_segmentor: Make) -> None:
    segmentor = tiny_segmentor("mobilenet", "ccnet")
    lower_precision(segmentor, "layer2")
    with torch.inference_mode():
        features = segmentor.backbone(torch.randn(1, 3, 64, 64))
        logits = segmentor(torch.randn(1, 3, 64, 64)).logits  # a decoder takes both
    assert {name: feature.dtype for name, feature in features.items()} == {
        "c1": torch.float32,
        **dict.fromkeys(("c2", "c3", "c4"), torch.bfloat16),
    }
    assert logits.dtype == torch.bfloat16


def test_the_stages_are_all_of_a_backbone(tiny_segmentor: Make) -> None:
    for backbone in BACKBONES:
        assert tuple(name for name, _ in tiny_segmentor(backbone, "fcn").backbone.named_children()) == STAGES


def test_what_is_stored_of_attention_is_what_attended(tiny_segmentor: Make) -> None:
    segmentor = tiny_segmentor("resnet", "ccnet")
    lower_precision(segmentor, "stem")
    with torch.inference_mode():
        traces = segmentor(torch.randn(2, 3, 64, 64)).traces
    for trace in traces:
        stored = trace.of_image(1)
        assert stored.query.dtype == stored.key.dtype == torch.float16
        assert torch.equal(stored.query.float(), trace.query[1].float())
        assert torch.equal(stored.key.float(), trace.key[1].float())


def test_the_tail_takes_bfloat16(tiny_segmentor: Make) -> None:
    segmentor = tiny_segmentor("resnet", "fcn")
    lower_precision(segmentor, "stem")
    logits = run(segmentor, torch.randn(1, 3, 64, 96))[0][0]
    of_them, of_floats = (upsample_argmax(x, (64, 96), (50, 75), align_corners=False) for x in (logits, logits.float()))
    assert torch.equal(of_them[0], of_floats[0])
    assert torch.equal(of_them[1], of_floats[1])
