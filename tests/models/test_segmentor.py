from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn

from models.segmentor import Segmentor

Build = Callable[[str, str], Segmentor]
BLOCKS = {
    "fcn": [],
    "ccnet": [("cca", 1), ("cca", 2)],
    "non_local": [("nl", 1)],
    "ann": [("afnb", 1), ("apnb", 1)],
    "danet": [("pam", 1)],
    "gcnet": [],
    "pspnet": [],
}
ALL = (
    pytest.mark.parametrize("backbone", ["resnet", "mobilenet", "edgetpu"]),
    pytest.mark.parametrize("head", list(BLOCKS)),
)


def every_network(test: Callable[..., None]) -> Callable[..., None]:
    for mark in ALL:
        test = mark(test)
    return test


@every_network
def test_logits_are_at_stride_8_or_at_the_decoders_4(tiny_segmentor: Build, backbone: str, head: str) -> None:
    segmentor = tiny_segmentor(backbone, head)
    with torch.no_grad():
        logits, traces = segmentor(torch.randn(2, 3, 65, 48))
    assert logits.shape == ((2, 5, 9, 6) if backbone == "resnet" else (2, 5, 17, 12))
    assert [(trace.block, trace.step) for trace in traces] == BLOCKS[head]
    assert segmentor.num_classes == 5


@every_network
def test_a_batch_gives_what_its_images_give_alone(tiny_segmentor: Build, backbone: str, head: str) -> None:
    segmentor = tiny_segmentor(backbone, head)
    images = torch.randn(3, 3, 40, 56)
    with torch.no_grad():
        batch = segmentor(images).logits
        alone = torch.cat([segmentor(image[None]).logits for image in images])
    assert (batch[0] - batch[1]).abs().max() > 0.1 * alone.abs().max()
    assert (batch - alone).abs().max() <= 1e-4 * alone.abs().max()


@every_network
def test_classify_is_the_rest_of_forward(tiny_segmentor: Build, backbone: str, head: str) -> None:
    segmentor = tiny_segmentor(backbone, head)
    image = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        assert torch.equal(segmentor.classify(segmentor.backbone(image)).logits, segmentor(image).logits)


@every_network
def test_timed_modules_are_the_whole_network_once(tiny_segmentor: Build, backbone: str, head: str) -> None:
    segmentor = tiny_segmentor(backbone, head)
    timed = Counter(id(parameter) for module in segmentor.timed_modules() for parameter in module.parameters())
    assert timed == Counter(id(parameter) for parameter in segmentor.parameters())


@every_network
def test_timed_modules_name_each_call(tiny_segmentor: Build, backbone: str, head: str) -> None:
    segmentor = tiny_segmentor(backbone, head)
    timed = segmentor.timed_modules()
    calls: Counter[nn.Module] = Counter()
    for module in timed:
        module.register_forward_pre_hook(lambda module, _: calls.update([module]))
    with torch.no_grad():
        segmentor(torch.randn(1, 3, 40, 56))
    names = [name for of_module in timed.values() for name in of_module]
    assert calls == {module: len(of_module) for module, of_module in timed.items()}
    assert len(set(names)) == len(names)


@every_network
def test_dtype_follows_the_module(tiny_segmentor: Build, backbone: str, head: str) -> None:
    segmentor = tiny_segmentor(backbone, head).bfloat16()
    with torch.no_grad():
        logits = segmentor(torch.randn(1, 3, 40, 56, dtype=torch.bfloat16)).logits
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


@every_network
def test_channels_last_gives_the_same(tiny_segmentor: Build, backbone: str, head: str) -> None:
    segmentor = tiny_segmentor(backbone, head)
    image = torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        expected = segmentor(image).logits
        segmentor.use_channels_last()
        got = segmentor(image.contiguous(memory_format=torch.channels_last)).logits
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(("backbone", "preferred"), [("resnet", False), ("mobilenet", True), ("edgetpu", True)])
def test_depthwise_backbones_prefer_channels_last(tiny_segmentor: Build, backbone: str, preferred: bool) -> None:
    assert tiny_segmentor(backbone, "ccnet").prefers_channels_last is preferred


@every_network
def test_every_parameter_learns(tiny_segmentor: Build, backbone: str, head: str) -> None:
    segmentor = tiny_segmentor(backbone, head)
    segmentor(torch.randn(1, 3, 40, 56)).logits.square().mean().backward()
    assert [name for name, parameter in segmentor.named_parameters() if parameter.grad is None] == []
