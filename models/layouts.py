"""The layouts of other people's checkpoints, told apart by their keys and brought to our names and values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from models.builder import Options

State = Mapping[str, Tensor]

# What serves training only: auxiliary classifiers, counters, and the copy of the weights that mmcv's averaging keeps
# beside them (when it writes a checkpoint, the averaged ones are in the usual place).
IGNORED_PREFIXES = (
    *("auxiliary_head.", "ema_", "data_preprocessor."),
    *("decode_head.pam_conv_seg.", "decode_head.cam_conv_seg."),
)
IGNORED_SUFFIX = ".num_batches_tracked"

PREFIXES = re.compile(r"^((module|_orig_mod)\.)+")

# InPlaceABN multiplies by |weight| + eps.
ABN_EPS = 1e-5


@dataclass(frozen=True)
class Layout:
    """
    Attributes:
        mark: the beginning of names that only this layout has
        rules: beginnings of names, or with a leading dot any parts of them, and what we have in their places
        convert: from renamed tensors to those that mean the same in our modules
        options: what goes with the layout, unless the file says otherwise
    """

    title: str
    mark: str
    rules: tuple[tuple[str, str], ...]
    convert: Callable[[State], dict[str, Tensor]]
    options: Options


def _absolute_norms(state: State) -> dict[str, Tensor]:
    """InPlaceABN's weights as a batch norm's."""
    norms = {key.removesuffix("running_mean") + "weight" for key in state if key.endswith(".running_mean")}
    return {key: tensor.float().abs() + ABN_EPS if key in norms else tensor for key, tensor in state.items()}


def _without_biases(state: State) -> dict[str, Tensor]:
    """Without biases of convolutions before a batch norm: its running mean is less by as much."""
    means = {key: f"{key.removesuffix('conv.bias')}bn.running_mean" for key in state if key.endswith(".conv.bias")}
    folded = {mean: state[mean].float() - state[bias].float() for bias, mean in means.items() if mean in state}
    return {key: folded.get(key, tensor) for key, tensor in state.items() if means.get(key) not in folded}


MMSEGMENTATION = Layout("mmsegmentation", "decode_head.", (), dict, Options())
# With its ResNetV1, whose stem has torchvision's names.
MMSEGMENTATION_V1 = Layout(
    "mmsegmentation",
    "backbone.conv1.",
    (("backbone.conv1.", "backbone.stem.0."), ("backbone.bn1.", "backbone.stem.1.")),
    dict,
    Options(),
)

# github.com/speedinghzl/CCNet
OFFICIAL_CCNET = Layout(
    title="official CCNet",
    mark="head.conva.",
    rules=(
        *(("conv1.", "backbone.stem.0."), ("bn1.", "backbone.stem.1.")),
        *(("conv2.", "backbone.stem.3."), ("bn2.", "backbone.stem.4.")),
        *(("conv3.", "backbone.stem.6."), ("bn3.", "backbone.stem.7.")),
        *((f"layer{stage}.", f"backbone.layer{stage}.") for stage in range(1, 5)),
        *(("head.conva.0.", "decode_head.convs.0.conv."), ("head.conva.1.", "decode_head.convs.0.bn.")),
        *(("head.convb.0.", "decode_head.convs.1.conv."), ("head.convb.1.", "decode_head.convs.1.bn.")),
        *(("head.bottleneck.0.", "decode_head.conv_cat.conv."), ("head.bottleneck.1.", "decode_head.conv_cat.bn.")),
        ("head.bottleneck.3.", "decode_head.conv_seg."),
        ("head.cca.gamma", "decode_head.cca.gamma.scale"),
        ("head.cca.", "decode_head.cca."),
        ("dsn.", "auxiliary_head."),
    ),
    convert=_absolute_norms,
    options=Options(align_corners=True, contract_dilation=False, ceil_mode=True, slope=0.01),
)

# github.com/MendelXu/ANN
OFFICIAL_ANN = Layout(
    title="official ANN",
    mark="backbone.prefix.",
    rules=(
        *(("backbone.prefix.conv1.", "backbone.stem.0."), ("backbone.prefix.bn1.", "backbone.stem.1.")),
        *(("backbone.prefix.conv2.", "backbone.stem.3."), ("backbone.prefix.bn2.", "backbone.stem.4.")),
        *(("backbone.prefix.conv3.", "backbone.stem.6."), ("backbone.prefix.bn3.", "backbone.stem.7.")),
        ("fusion.stages.", "decode_head.fusion.stages."),
        ("fusion.conv_bn_dropout.0.", "decode_head.fusion.bottleneck.conv."),
        ("fusion.conv_bn_dropout.1.", "decode_head.fusion.bottleneck.bn."),
        *(("context.0.", "decode_head.bottleneck.conv."), ("context.1.0.", "decode_head.bottleneck.bn.")),
        ("context.2.stages.", "decode_head.context.stages."),
        ("context.2.conv_bn_dropout.0.", "decode_head.context.bottleneck.conv."),
        ("context.2.conv_bn_dropout.1.0.", "decode_head.context.bottleneck.bn."),
        *((".f_key.0.", ".key_project.conv."), (".f_key.1.0.", ".key_project.bn.")),
        *((".f_query.0.", ".query_project.conv."), (".f_query.1.0.", ".query_project.bn.")),
        *((".f_value.", ".value_project."), (".W.", ".out_project.")),
        ("cls.", "decode_head.conv_seg."),
        ("dsn.", "auxiliary_head."),
    ),
    convert=_without_biases,
    options=Options(align_corners=True, ceil_mode=True),
)


def detect_layout(keys: Mapping[str, Tensor]) -> Layout:
    """Ours, where it is none of the others: ours are mmsegmentation's names."""
    for layout in (OFFICIAL_CCNET, OFFICIAL_ANN, MMSEGMENTATION_V1):
        if any(key.startswith(layout.mark) for key in keys):
            return layout
    return MMSEGMENTATION


def to_our_names(state: State, layout: Layout) -> dict[str, Tensor]:
    """Tensors under our names, without those that serve training only."""
    renamed = {_rename(key, layout.rules): tensor for key, tensor in state.items()}
    return {
        key: tensor
        for key, tensor in renamed.items()
        if not key.startswith(IGNORED_PREFIXES) and not key.endswith(IGNORED_SUFFIX)
    }


def to_their_name(key: str, layout: Layout) -> str:
    """What a layout calls a tensor of ours."""
    return _rename(key, tuple((new, old) for old, new in layout.rules))


def to_our_values(state: State, layout: Layout) -> dict[str, Tensor]:
    """Tensors under our names with the values that mean the same in our modules."""
    return {
        # The official gamma is a list of one number.
        key: tensor.reshape(()) if key.endswith(".gamma.scale") and tensor.numel() == 1 else tensor
        for key, tensor in layout.convert(state).items()
    }


def strip_prefix(state: State) -> dict[str, Tensor]:
    """Without what data-parallel training and compilation put before every name, in whatever order."""
    return {PREFIXES.sub("", key): tensor for key, tensor in state.items()}


def _rename(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for old, new in rules:
        if old.startswith("."):
            key = key.replace(old, new)
        elif key.startswith(old):
            key = new + key.removeprefix(old)
    return key
