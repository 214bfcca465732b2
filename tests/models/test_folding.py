from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import nn

from models.folding import fold_batch_norm, leave_out_batch_norm
from models.segmentor import Segmentor

Build = Callable[[str, str], Segmentor]


@pytest.mark.parametrize("head", ["fcn", "ccnet", "non_local", "ann"])
@pytest.mark.parametrize("backbone", ["resnet", "mobilenet", "edgetpu"])
def test_folded_network_is_the_same_function(tiny_segmentor: Build, backbone: str, head: str) -> None:
    segmentor = tiny_segmentor(backbone, head)
    folded = deepcopy(segmentor)
    fold_batch_norm(folded)
    image = torch.randn(2, 3, 65, 48)
    with torch.no_grad():
        got, want = folded(image).logits, segmentor(image).logits
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert want.std() > 0
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.parametrize("backbone", ["resnet", "mobilenet", "edgetpu"])
def test_a_network_without_values_gets_the_parameters_of_a_folded_one(tiny_segmentor: Build, backbone: str) -> None:
    segmentor = tiny_segmentor(backbone, "ann")
    empty = deepcopy(segmentor).to("meta")
    leave_out_batch_norm(empty)
    fold_batch_norm(segmentor)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert {key: tensor.shape for key, tensor in empty.state_dict().items()} == {
        key: tensor.shape for key, tensor in segmentor.state_dict().items()
    }


def test_a_projection_that_two_share_is_folded_once(tiny_segmentor: Build) -> None:
    segmentor = tiny_segmentor("mobilenet", "ann")
    fold_batch_norm(segmentor)
    attention = segmentor.get_submodule("decode_head.context.stages.0")
    assert attention.query_project is attention.key_project


def test_running_statistics_are_what_is_folded() -> None:
    pair = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0)).eval()
    nn.init.constant_(pair[0].weight, 6)
    pair[1].running_mean.fill_(5)
    pair[1].running_var.fill_(4)
    fold_batch_norm(pair)
    assert pair[0].weight.item() == pytest.approx(3)
    assert pair[0].bias.item() == pytest.approx(-2.5)


def test_a_lone_convolution_stays() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    fold_batch_norm(module)
    assert [type(part) for part in module] == [nn.Conv2d, nn.ReLU, nn.BatchNorm2d]
