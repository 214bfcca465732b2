"""Other people's networks, written once more as plain functions of their own checkpoints' tensors.

Nothing here uses ours: names are the source's, attention is a softmax over all positions, pooling is torch's. What a
layout's tensors mean is said here a second time, independently, so that loading a checkpoint can be compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
INNER = {"ccnet": 64, "official_ccnet": 64, "danet": 64, "gcnet": 128}  # channels of queries and keys, where not 256


@dataclass(frozen=True)
class Sizes:
    """Widths and depths of a network; those of a Bottleneck's stages are four times as wide at their outputs."""

    blocks: tuple[int, ...] = (1, 2, 2, 1)
    stem: tuple[int, int] = (3, 6)
    planes: tuple[int, ...] = (3, 4, 5, 6)
    channels: int = 12
    inner: int = 5
    classes: int = 7
    basic: bool = False
    auxiliary: int = 4

    def width(self, stage: int) -> int:
        return self.planes[stage - 1] * (1 if self.basic else 4)


def full_size(name: str, depth: int) -> Sizes:
    """As it is published for Cityscapes, with a ResNet of that depth."""
    official = name.startswith("official")
    return Sizes(
        blocks=BLOCKS[depth],
        stem=(64, 128) if official else (32, 64),
        planes=(64, 128, 256, 512),
        channels=512,
        inner=INNER.get(name, 256),
        classes=19,
        auxiliary=512 if official else 256,
    )


@dataclass(frozen=True)
class Source:
    """Where a family of checkpoints has its backbone, and what is special to it."""

    stem: tuple[tuple[str, str], ...]
    stages: str
    counters: bool = True
    contract: bool = True
    ceil_mode: bool = False
    absolute: bool = False
    averages: bool = False  # before a block's projection

    @property
    def projection(self) -> tuple[int, int]:
        """Numbers of a projection's convolution and norm."""
        return (1, 2) if self.averages else (0, 1)


MMSEG = Source(tuple((f"backbone.stem.{i}", f"backbone.stem.{i + 1}") for i in (0, 3, 6)), "backbone.layer")
# Its ResNetV1 and ResNetV1d.
MMSEG_V1 = replace(MMSEG, stem=(("backbone.conv1", "backbone.bn1"),))
MMSEG_V1D = replace(MMSEG, averages=True)
CCNET = Source(
    tuple((f"conv{i}", f"bn{i}") for i in (1, 2, 3)),
    "layer",
    counters=False,
    contract=False,
    ceil_mode=True,
    absolute=True,
)
ANN = Source(
    tuple((f"backbone.prefix.conv{i}", f"backbone.prefix.bn{i}") for i in (1, 2, 3)), "backbone.layer", ceil_mode=True
)


# Names and shapes


class Table:
    def __init__(self, source: Source) -> None:
        self.shapes: Shapes = {}
        self.source = source

    def conv(self, name: str, out: int, of: int, size: int = 1, *, bias: bool = False) -> None:
        self.shapes[f"{name}.weight"] = (out, of, size, size)
        if bias:
            self.shapes[f"{name}.bias"] = (out,)

    def norm(self, name: str, width: int) -> None:
        self.shapes |= {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
        if self.source.counters:
            self.shapes[f"{name}.num_batches_tracked"] = ()

    def module(self, name: str, out: int, of: int, size: int = 1) -> None:
        """mmcv's ConvModule."""
        self.conv(f"{name}.conv", out, of, size)
        self.norm(f"{name}.bn", out)

    def resnet(self, sizes: Sizes) -> None:
        low, wide = sizes.stem
        kernels = ((low, 3, 3), (low, low, 3), (wide, low, 3)) if len(self.source.stem) > 1 else ((wide, 3, 7),)
        for (conv, norm), kernel in zip(self.source.stem, kernels, strict=True):
            self.conv(conv, *kernel)
            self.norm(norm, kernel[0])
        width = wide
        for stage, (blocks, inner) in enumerate(zip(sizes.blocks, sizes.planes, strict=True), 1):
            out = sizes.width(stage)
            for index in range(blocks):
                name = f"{self.source.stages}{stage}.{index}"
                inside = [(inner, width, 3), (inner, inner, 3)]
                if not sizes.basic:
                    inside = [(inner, width, 1), (inner, inner, 3), (out, inner, 1)]
                for number, (to, of, size) in enumerate(inside, 1):
                    self.conv(f"{name}.conv{number}", to, of, size)
                    self.norm(f"{name}.bn{number}", to)
                if index == 0 and (stage == 2 or width != out):  # where the stride or the width changes
                    conv, norm = (f"{name}.downsample.{number}" for number in self.source.projection)
                    self.conv(conv, out, width)
                    self.norm(norm, out)
                width = out

    def mmseg_ends(self, sizes: Sizes) -> None:
        """Classifier, and the auxiliary head on stage 3 that serves training."""
        self.conv("decode_head.conv_seg", sizes.classes, sizes.channels, bias=True)
        self.module("auxiliary_head.convs.0", sizes.auxiliary, sizes.width(3), 3)
        self.conv("auxiliary_head.conv_seg", sizes.classes, sizes.auxiliary, bias=True)

    def fcn(self, sizes: Sizes) -> None:
        high, channels = sizes.width(4), sizes.channels
        self.module("decode_head.convs.0", channels, high, 3)
        self.module("decode_head.convs.1", channels, channels, 3)
        self.module("decode_head.conv_cat", channels, high + channels, 3)

    def projections(self, block: str, names: tuple[str, str, str], sizes: Sizes) -> None:
        """Biased query, key and value of one block."""
        for name, out in zip(names, (sizes.inner, sizes.inner, sizes.channels), strict=True):
            self.conv(f"{block}.{name}", out, sizes.channels, bias=True)


def mmseg_shapes(head: str, sizes: Sizes, source: Source = MMSEG) -> Shapes:
    table = Table(source)
    table.resnet(sizes)
    table.mmseg_ends(sizes)
    HEADS[head][0](table, sizes)
    return table.shapes


def _fcn_shapes(table: Table, sizes: Sizes) -> None:
    table.fcn(sizes)


def _ccnet_shapes(table: Table, sizes: Sizes) -> None:
    table.fcn(sizes)
    table.projections("decode_head.cca", ("query_conv", "key_conv", "value_conv"), sizes)
    table.shapes["decode_head.cca.gamma.scale"] = ()


def _nonlocal_shapes(table: Table, sizes: Sizes) -> None:
    table.fcn(sizes)
    for name in ("g", "theta", "phi"):
        table.conv(f"decode_head.nl_block.{name}.conv", sizes.inner, sizes.channels, bias=True)
    table.module("decode_head.nl_block.conv_out", sizes.channels, sizes.inner)


def _gcnet_shapes(table: Table, sizes: Sizes) -> None:
    table.fcn(sizes)
    block, inner = "decode_head.gc_block", sizes.inner
    table.conv(f"{block}.conv_mask", 1, sizes.channels, bias=True)
    table.conv(f"{block}.channel_add_conv.0", inner, sizes.channels, bias=True)
    table.shapes |= {f"{block}.channel_add_conv.1.{part}": (inner, 1, 1) for part in ("weight", "bias")}
    table.conv(f"{block}.channel_add_conv.3", sizes.channels, inner, bias=True)


def _danet_shapes(table: Table, sizes: Sizes) -> None:
    for branch in ("pam", "cam"):
        table.module(f"decode_head.{branch}_in_conv", sizes.channels, sizes.width(4), 3)
        table.module(f"decode_head.{branch}_out_conv", sizes.channels, sizes.channels, 3)
        table.conv(f"decode_head.{branch}_conv_seg", sizes.classes, sizes.channels, bias=True)
        table.shapes[f"decode_head.{branch}.gamma.scale"] = ()
    table.projections("decode_head.pam", ("query_project", "key_project", "value_project"), sizes)


def _pspnet_shapes(table: Table, sizes: Sizes) -> None:
    for level in range(4):
        table.module(f"decode_head.psp_modules.{level}.1", sizes.channels, sizes.width(4))
    table.module("decode_head.bottleneck", sizes.channels, sizes.width(4) + 4 * sizes.channels, 3)


def _ann_shapes(table: Table, sizes: Sizes) -> None:
    low, high, channels, inner = sizes.width(3), sizes.width(4), sizes.channels, sizes.inner
    for block, key, query, out in (("fusion", low, high, high), ("context", channels, channels, channels)):
        stage = f"decode_head.{block}.stages.0"
        table.module(f"{stage}.key_project", inner, key)
        table.module(f"{stage}.query_project", inner, query)
        table.conv(f"{stage}.value_project", inner, key, bias=True)
        table.conv(f"{stage}.out_project", out, inner, bias=True)
        table.module(f"decode_head.{block}.bottleneck", out, out + query)
    table.module("decode_head.bottleneck", channels, high, 3)


def official_ccnet_shapes(sizes: Sizes) -> Shapes:
    table, high, channels = Table(CCNET), sizes.width(4), sizes.channels
    table.resnet(sizes)
    for name, of in (("conva", high), ("convb", channels), ("bottleneck", high + channels)):
        table.conv(f"head.{name}.0", channels, of, 3)
        table.norm(f"head.{name}.1", channels)
    table.projections("head.cca", ("query_conv", "key_conv", "value_conv"), sizes)
    table.shapes["head.cca.gamma"] = (1,)
    table.conv("head.bottleneck.3", sizes.classes, channels, bias=True)
    table.conv("dsn.0", sizes.auxiliary, sizes.width(3), 3, bias=True)
    table.norm("dsn.1", sizes.auxiliary)
    table.conv("dsn.3", sizes.classes, sizes.auxiliary, bias=True)
    return table.shapes


def official_ann_shapes(sizes: Sizes) -> Shapes:
    table, low, high, channels = Table(ANN), sizes.width(3), sizes.width(4), sizes.channels
    table.resnet(sizes)
    for block, key, query, out, norm in (
        ("fusion", low, high, high, "1"),
        ("context.2", channels, channels, channels, "1.0"),
    ):
        for name, of in (("f_key", key), ("f_query", query)):
            table.conv(f"{block}.stages.0.{name}.0", sizes.inner, of, bias=True)
            table.norm(f"{block}.stages.0.{name}.1.0", sizes.inner)
        table.conv(f"{block}.stages.0.f_value", sizes.inner, key, bias=True)
        table.conv(f"{block}.stages.0.W", out, sizes.inner, bias=True)
        table.conv(f"{block}.conv_bn_dropout.0", out, out + query, bias=True)
        table.norm(f"{block}.conv_bn_dropout.{norm}", out)
    table.conv("context.0", channels, high, 3, bias=True)
    table.norm("context.1.0", channels)
    table.conv("cls", sizes.classes, channels, bias=True)
    table.conv("dsn.0", sizes.auxiliary, low, 3, bias=True)
    table.norm("dsn.1.0", sizes.auxiliary)
    table.conv("dsn.3", sizes.classes, sizes.auxiliary, bias=True)
    return {f"module.{key}": shape for key, shape in table.shapes.items()}


class Seeded:
    """Random numbers of torch."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=self._generator)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self._generator)


class Ruled:
    """Numbers by a rule, the same in every version of torch: sines of an index that never starts anew."""

    def __init__(self) -> None:
        self._next = 0

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        size = math.prod(shape)
        index = torch.arange(self._next, self._next + size, dtype=torch.float64)
        self._next += size
        return ((index * 12.9898).sin() * 43758.5453).frac().abs().float().view(shape)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Uniform too, but of mean 0 and variance 1: nothing here needs a tail."""
        return (self.uniform(shape) - 0.5) * 12**0.5


def random_state(shapes: Shapes, seed: int = 0) -> State:
    """Weights with which signals keep their size and no branch is hidden: nothing is 0, no norm is an identity."""
    return _state(shapes, Seeded(seed))


def ruled_state(shapes: Shapes) -> State:
    """The same, without chance."""
    return _state(shapes, Ruled())


def _state(shapes: Shapes, numbers: Seeded | Ruled) -> State:
    absolute = "head.conva.1.weight" in shapes
    state = {key: _tensor(key, shape, numbers, absolute) for key, shape in shapes.items()}
    # APNB has one projection, listed twice.
    for query, key in (("query_project", "key_project"), ("f_query", "f_key")):
        for name in state:
            if "context." in name and query in name:
                state[name] = state[name.replace(query, key)].clone()
    return state


def _tensor(key: str, shape: tuple[int, ...], numbers: Seeded | Ruled, absolute: bool) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.tensor(7)
    if key.endswith("running_var"):
        return numbers.uniform(shape) * 1.5 + 0.5
    if "gamma" in key:
        return numbers.uniform(shape) * 0.4 + 0.3
    normal = numbers.normal(shape)
    if len(shape) == 4:
        return normal * math.sqrt(2 / (shape[1] * shape[2] * shape[3]))
    if not key.endswith("weight"):
        return normal * 0.2
    weight = normal * 0.3 + 0.9
    if absolute:
        weight[::3] *= -1  # InPlaceABN takes the size alone
    return weight


# Forward passes


class Net:
    def __init__(self, state: State, source: Source) -> None:
        self.state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
        self.source = source

    def conv(self, name: str, x: Tensor, **how: int) -> Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), **how)

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        if self.source.absolute:
            weight = weight.abs() + 1e-5
        shape = (1, -1, 1, 1)
        return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)

    def module(self, name: str, x: Tensor, padding: int = 0) -> Tensor:
        return self.norm(f"{name}.bn", self.conv(f"{name}.conv", x, padding=padding)).relu()

    def resnet(self, x: Tensor) -> dict[int, Tensor]:
        """The output of each stage."""
        for index, (conv, norm) in enumerate(self.source.stem):
            padding = self.state[f"{conv}.weight"].shape[2] // 2
            x = self.norm(norm, self.conv(conv, x, stride=1 if index else 2, padding=padding)).relu()
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=self.source.ceil_mode)
        stages = {}
        for stage, stride, dilation in ((1, 1, 1), (2, 2, 1), (3, 1, 2), (4, 1, 4)):
            for index, name in self._blocks(stage):
                first = index == 0 and dilation > 1 and self.source.contract
                x = self._block(name, x, stride if index == 0 else 1, dilation // 2 if first else dilation)
            stages[stage] = x
        return stages

    def _blocks(self, stage: int) -> Iterator[tuple[int, str]]:
        for index in count():
            name = f"{self.source.stages}{stage}.{index}"
            if f"{name}.conv1.weight" not in self.state:
                return
            yield index, name

    def _block(self, name: str, x: Tensor, stride: int, dilation: int) -> Tensor:
        wide = {"stride": stride, "padding": dilation, "dilation": dilation}
        if f"{name}.conv3.weight" in self.state:
            y = self.norm(f"{name}.bn1", self.conv(f"{name}.conv1", x)).relu()
            y = self.norm(f"{name}.bn2", self.conv(f"{name}.conv2", y, **wide)).relu()
            y = self.norm(f"{name}.bn3", self.conv(f"{name}.conv3", y))
        else:
            y = self.norm(f"{name}.bn1", self.conv(f"{name}.conv1", x, **wide)).relu()
            y = self.norm(f"{name}.bn2", self.conv(f"{name}.conv2", y, padding=1))
        conv, norm = (f"{name}.downsample.{number}" for number in self.source.projection)
        if f"{conv}.weight" in self.state:
            if self.source.averages:
                x, stride = F.avg_pool2d(x, stride, stride, ceil_mode=True, count_include_pad=False), 1
            x = self.norm(norm, self.conv(conv, x, stride=stride))
        return (x + y).relu()


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, seen: Tensor | None = None) -> Tensor:
    """Softmax over key's positions [B, C, S]; `seen` [HW, S] says which of them count."""
    affinity = torch.einsum("bcp,bcs->bps", query.flatten(2), key.flatten(2)) * scale
    if seen is not None:
        affinity = affinity.masked_fill(~seen, float("-inf"))
    out = torch.einsum("bps,bcs->bcp", affinity.softmax(2), value.flatten(2))
    return out.view(query.shape[0], -1, *query.shape[2:])


def criss_cross(net: Net, block: str, x: Tensor, gamma: Tensor) -> Tensor:
    height, width = x.shape[2:]
    rows, columns = (
        grid.flatten() for grid in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    cross = (rows[:, None] == rows) | (columns[:, None] == columns)
    query, key, value = (net.conv(f"{block}.{name}_conv", x) for name in ("query", "key", "value"))
    return gamma * attend(query, key, value, 1.0, cross) + x


def pyramid(x: Tensor) -> Tensor:
    return torch.cat([F.adaptive_avg_pool2d(x, size).flatten(2) for size in (1, 3, 6, 8)], 2)


def _fcn(net: Net, x: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
    y = net.module("decode_head.convs.1", block(net.module("decode_head.convs.0", x, 1)), 1)
    return net.module("decode_head.conv_cat", torch.cat([x, y], 1), 1)


def _fcn_head(net: Net, stages: dict[int, Tensor]) -> Tensor:
    return _fcn(net, stages[4], lambda x: x)


def _ccnet_head(net: Net, stages: dict[int, Tensor]) -> Tensor:
    gamma = net.state["decode_head.cca.gamma.scale"]

    def twice(x: Tensor) -> Tensor:
        return criss_cross(net, "decode_head.cca", criss_cross(net, "decode_head.cca", x, gamma), gamma)

    return _fcn(net, stages[4], twice)


def _nonlocal_head(net: Net, stages: dict[int, Tensor]) -> Tensor:
    block = "decode_head.nl_block"

    def non_local(x: Tensor) -> Tensor:
        theta, phi, g = (net.conv(f"{block}.{name}.conv", x) for name in ("theta", "phi", "g"))
        context = attend(theta, phi, g, theta.shape[1] ** -0.5)
        return x + net.norm(f"{block}.conv_out.bn", net.conv(f"{block}.conv_out.conv", context))

    return _fcn(net, stages[4], non_local)


def _gcnet_head(net: Net, stages: dict[int, Tensor]) -> Tensor:
    block = "decode_head.gc_block"

    def global_context(x: Tensor) -> Tensor:
        weights = net.conv(f"{block}.conv_mask", x).flatten(1).softmax(1)
        context = torch.einsum("bcp,bp->bc", x.flatten(2), weights)[:, :, None, None]
        inner = net.conv(f"{block}.channel_add_conv.0", context)
        inner = (inner - inner.mean(1, keepdim=True)) / (inner.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        norm = (net.state[f"{block}.channel_add_conv.1.{part}"] for part in ("weight", "bias"))
        inner = inner * next(norm) + next(norm)
        return x + net.conv(f"{block}.channel_add_conv.3", inner.relu())

    return _fcn(net, stages[4], global_context)


def _danet_head(net: Net, stages: dict[int, Tensor]) -> Tensor:
    x = net.module("decode_head.pam_in_conv", stages[4], 1)
    query, key, value = (net.conv(f"decode_head.pam.{name}_project", x) for name in ("query", "key", "value"))
    pam = net.state["decode_head.pam.gamma.scale"] * attend(query, key, value, 1.0) + x
    x = net.module("decode_head.cam_in_conv", stages[4], 1)
    energy = torch.einsum("bcp,bdp->bcd", x.flatten(2), x.flatten(2))
    attention = (energy.max(2, keepdim=True).values.expand_as(energy) - energy).softmax(2)
    context = torch.einsum("bcd,bdp->bcp", attention, x.flatten(2)).view(x.shape)
    cam = net.state["decode_head.cam.gamma.scale"] * context + x
    return net.module("decode_head.pam_out_conv", pam, 1) + net.module("decode_head.cam_out_conv", cam, 1)


def _pspnet_head(net: Net, stages: dict[int, Tensor]) -> Tensor:
    x = stages[4]
    parts = [x]
    for level, size in enumerate((1, 2, 3, 6)):
        pooled = net.module(f"decode_head.psp_modules.{level}.1", F.adaptive_avg_pool2d(x, size))
        parts.append(F.interpolate(pooled, x.shape[2:], mode="bilinear", align_corners=False))
    return net.module("decode_head.bottleneck", torch.cat(parts, 1), 1)


def _ann_head(net: Net, stages: dict[int, Tensor]) -> Tensor:
    def block(name: str, query_map: Tensor, key_map: Tensor) -> Tensor:
        stage = f"decode_head.{name}.stages.0"
        query, key = net.module(f"{stage}.query_project", query_map), net.module(f"{stage}.key_project", key_map)
        value = net.conv(f"{stage}.value_project", key_map)
        context = attend(query, pyramid(key), pyramid(value), query.shape[1] ** -0.5)
        joined = torch.cat([net.conv(f"{stage}.out_project", context), query_map], 1)
        return net.norm(f"decode_head.{name}.bottleneck.bn", net.conv(f"decode_head.{name}.bottleneck.conv", joined))

    fused = block("fusion", stages[4], stages[3])
    y = net.module("decode_head.bottleneck", fused, 1)
    return block("context", y, y).relu()


HEADS: dict[str, tuple[Callable[[Table, Sizes], None], Callable[[Net, dict[int, Tensor]], Tensor]]] = {
    "fcn": (_fcn_shapes, _fcn_head),
    "ccnet": (_ccnet_shapes, _ccnet_head),
    "ann": (_ann_shapes, _ann_head),
    "nonlocal": (_nonlocal_shapes, _nonlocal_head),
    "danet": (_danet_shapes, _danet_head),
    "gcnet": (_gcnet_shapes, _gcnet_head),
    "pspnet": (_pspnet_shapes, _pspnet_head),
}


def mmseg_logits(head: str, state: State, image: Tensor, source: Source = MMSEG) -> Tensor:
    net = Net(state, source)
    return net.conv("decode_head.conv_seg", HEADS[head][1](net, net.resnet(image)))


def official_ccnet_logits(state: State, image: Tensor) -> Tensor:
    net = Net(state, CCNET)
    x = net.resnet(image)[4]

    def part(name: str, y: Tensor) -> Tensor:
        return F.leaky_relu(net.norm(f"head.{name}.1", net.conv(f"head.{name}.0", y, padding=1)), 0.01)

    y = part("conva", x)
    for _ in range(2):
        y = criss_cross(net, "head.cca", y, net.state["head.cca.gamma"])
    return net.conv("head.bottleneck.3", part("bottleneck", torch.cat([x, part("convb", y)], 1)))


def official_ann_logits(state: State, image: Tensor) -> Tensor:
    net = Net(state, ANN)

    def block(name: str, query_map: Tensor, key_map: Tensor, norm: str) -> Tensor:
        query, key = (
            net.norm(f"{name}.stages.0.{which}.1.0", net.conv(f"{name}.stages.0.{which}.0", x)).relu()
            for which, x in (("f_query", query_map), ("f_key", key_map))
        )
        value = net.conv(f"{name}.stages.0.f_value", key_map)
        context = attend(query, pyramid(key), pyramid(value), query.shape[1] ** -0.5)
        joined = torch.cat([net.conv(f"{name}.stages.0.W", context), query_map], 1)
        return net.norm(f"{name}.conv_bn_dropout.{norm}", net.conv(f"{name}.conv_bn_dropout.0", joined))

    stages = net.resnet(image)
    fused = block("fusion", stages[4], stages[3], "1")
    y = net.norm("context.1.0", net.conv("context.0", fused, padding=1)).relu()
    return net.conv("cls", block("context.2", y, y, "1.0").relu())


def shapes_of(name: str, sizes: Sizes) -> Shapes:
    """Of a network by name: `ccnet` as mmsegmentation has it, `official_ccnet` as its authors have it, and so on."""
    if name == "official_ccnet":
        return official_ccnet_shapes(sizes)
    return official_ann_shapes(sizes) if name == "official_ann" else mmseg_shapes(name, sizes)


def logits_of(name: str, state: State, image: Tensor) -> Tensor:
    """Logits [B, K, h, w] at the network's own resolution for an image [B, 3, H, W]."""
    with torch.no_grad():
        if name == "official_ccnet":
            return official_ccnet_logits(state, image)
        return official_ann_logits(state, image) if name == "official_ann" else mmseg_logits(name, state, image)


NETWORKS = (*HEADS, "official_ccnet", "official_ann")
