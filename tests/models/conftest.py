"""Shared by the tests of models: the reference data's folder, random state and the criss-cross definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones.mobilenet import MobileNetV2
from models.backbones.mobilenet_edgetpu import MobileNetEdgeTPU
from models.backbones.resnet import ResNet
from models.heads.ann import ANNHead
from models.heads.ccnet import CCHead
from models.heads.danet import DAHead
from models.heads.decoder import Decoder
from models.heads.fcn import FCNHead, Head
from models.heads.gcnet import GCHead
from models.heads.non_local import NonLocalHead
from models.heads.pspnet import PSPHead
from models.segmentor import Segmentor
from models.traces import Trace

SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data: key tables and recorded outputs of mmsegmentation."""
    if not SHARED.is_dir():
        pytest.skip("no reference data: the folder shared/ is not beside the repository")
    return SHARED


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def _threads_put_back() -> Iterator[None]:
    """For tests that set torch's number of threads, however they end."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    # Networks this small only lose time by sharing their work out.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def randomize() -> Callable[[nn.Module], None]:
    """Makes a fresh module work: statistics of its norms, and whatever starts at 0 and so would hide a branch."""

    def randomize(module: nn.Module) -> None:
        with torch.no_grad():
            for part in module.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.running_mean.normal_(std=0.2)
                    part.running_var.uniform_(0.3, 2)
                    part.weight.uniform_(0.5, 1.5)
                    part.bias.normal_(std=0.2)
            for parameter in module.parameters():
                if not parameter.any():
                    parameter.uniform_(0.2, 0.6)

    return randomize


@pytest.fixture
def criss_cross_map() -> Callable[[Tensor, Tensor], Tensor]:
    """Attention [B, HW, HW] as a softmax over all positions under a same-row-or-same-column mask."""

    def criss_cross_map(query: Tensor, key: Tensor) -> Tensor:
        height, width = query.shape[2:]
        index = torch.arange(height * width)
        rows, columns = index // width, index % width
        reachable = (rows[:, None] == rows) | (columns[:, None] == columns)
        affinity = query.flatten(2).mT @ key.flatten(2)
        return affinity.masked_fill(~reachable, float("-inf")).softmax(-1)

    return criss_cross_map


@pytest.fixture
def tiny_segmentor(randomize: Callable[[nn.Module], None]) -> Callable[[str, str], Segmentor]:
    """Five classes, random weights, eval mode; with a MobileNet comes a decoder."""

    def tiny_segmentor(backbone: str, head: str) -> Segmentor:
        if backbone == "resnet":
            segmentor = Segmentor(ResNet(stem_channels=(4, 8), planes=(4, 8, 16, 32)), tiny_head(head, 64, 128))
        elif backbone == "edgetpu":
            decoder = Decoder(16, (24, 40), (8, 12))
            segmentor = Segmentor(MobileNetEdgeTPU(), tiny_head(head, 72, 144, classifier_channels=8), decoder)
        else:
            decoder = Decoder(16, (8, 8), (8, 12))
            segmentor = Segmentor(MobileNetV2(width=0.25), tiny_head(head, 24, 80, classifier_channels=8), decoder)
        randomize(segmentor)
        record_statistics(segmentor)
        return segmentor.eval()

    return tiny_segmentor


def record_statistics(segmentor: Segmentor) -> None:
    """Norms take their statistics from one batch, so that signals neither fade nor grow on their way."""
    norms = [module for module in segmentor.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        segmentor.train()(torch.randn(4, 3, 32, 48))
    for norm in norms:
        norm.momentum = 0.1


def tiny_head(name: str, low: int, high: int, classifier_channels: int | None = None) -> Head:
    if name == "ann":
        return ANNHead((low, high), 16, 5, classifier_channels=classifier_channels)
    if name == "ccnet":
        return CCHead(high, 16, 5, query_channels=4, classifier_channels=classifier_channels)
    if name == "danet":
        return DAHead(high, 16, 5, query_channels=4, classifier_channels=classifier_channels)
    if name == "gcnet":
        return GCHead(high, 16, 5, classifier_channels=classifier_channels)
    if name == "pspnet":
        return PSPHead(high, 16, 5, classifier_channels=classifier_channels)
    if name == "non_local":
        return NonLocalHead(high, 16, 5, classifier_channels=classifier_channels)
    return FCNHead(high, 16, 5, classifier_channels=classifier_channels)


@pytest.fixture
def plain_attention(criss_cross_map: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Trace], Tensor]:
    """A block's attention as it is defined: a matrix [HW, HW] float64."""

    def plain(trace: Trace) -> Tensor:
        query, key = trace.query.double(), trace.key.double()
        if trace.block == "cca":
            return criss_cross_map(query[None] * trace.scale, key[None])[0]
        weights = (trace.scale * query.flatten(1).T @ key.flatten(1)).softmax(1)
        if not trace.pool_scales:
            return weights
        cells = torch.eye(query[0].numel(), dtype=torch.float64).view(-1, 1, *trace.grid)
        pooled = torch.cat([F.adaptive_avg_pool2d(cells, scale).flatten(1) for scale in trace.pool_scales], 1)
        return weights @ pooled.T

    return plain
