"""Builds the segmentor that a state dict was saved from, from the shapes of its tensors alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from models.backbones.mobilenet import LAST_BLOCKS, WIDTHS, MobileNetV2, stage_channels
from models.backbones.mobilenet_edgetpu import MobileNetEdgeTPU
from models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from models.errors import CheckpointError
from models.folding import leave_out_batch_norm
from models.heads.ann import ANNHead
from models.heads.ccnet import CCHead
from models.heads.danet import DAHead
from models.heads.decoder import Decoder
from models.heads.fcn import FCNHead, Head
from models.heads.gcnet import GCHead
from models.heads.non_local import NonLocalHead
from models.heads.pspnet import PSPHead
from models.segmentor import Segmentor

Shapes = Mapping[str, torch.Size]

MAX_CLASSES = 255  # class ids are bytes


@dataclass(frozen=True)
class Options:
    """What shapes don't tell. The defaults are mmsegmentation's and the papers'.

    Attributes:
        recurrence: passes of criss-cross attention
        output_stride: of a MobileNetV2; a ResNet is always at 8
        align_corners: how everything is resized
        contract_dilation, ceil_mode: of a ResNet
        slope: of a CCNet's activations below zero
    """

    recurrence: int = 2
    output_stride: int = 16
    align_corners: bool = False
    contract_dilation: bool = True
    ceil_mode: bool = False
    slope: float = 0.0


def build_segmentor(shapes: Shapes, options: Options) -> Segmentor:
    """An untrained segmentor with exactly these parameters.

    Raises:
        CheckpointError: the tensors are of no architecture that we know
    """
    backbone = _build_backbone(shapes, options)
    segmentor = Segmentor(
        backbone, _build_head(shapes, options), _build_decoder(shapes), align_corners=options.align_corners
    ).eval()
    # A checkpoint trained or saved without batch norm in its backbone has biases in their stead.
    if any(f"backbone.{stem}.bias" in shapes for stem in ("stem.conv", "stem.0", "stem.0.conv")):
        leave_out_batch_norm(segmentor.backbone)
    _check_widths(segmentor)
    return segmentor


def _check_widths(segmentor: Segmentor) -> None:
    """Whether each part reads what the one before it gives: built from its own shapes, it would fail only when it runs.

    Raises:
        CheckpointError: one sentence for the first that does not
    """
    head, decoder = segmentor.decode_head, segmentor.decoder
    given = dict(zip(("c1", "c2", "c3", "c4"), output_channels(segmentor.backbone), strict=True))
    read = [("head", name, width) for name, width in head.in_channels.items()]
    last = head.channels
    if decoder is not None:
        read += [("decoder", name, width) for name, width in decoder.in_channels.items()]
        read.append(("decoder", "context", decoder.context_channels))
        last = decoder.channels
    read.append(("classifier", "output", head.conv_seg.in_channels))
    given |= {"context": head.channels, "output": last}
    for part, name, width in read:
        if given[name] != width:
            source = {"context": "the head", "output": "the part before it"}.get(
                name, f"stage {name[1]} of the backbone"
            )
            raise CheckpointError(f"the {part} reads {width} channels where {source} gives {given[name]}")


def output_channels(backbone: nn.Module) -> list[int]:
    """Channels of `c1` to `c4`."""
    stages = [backbone.get_submodule(f"layer{stage}").modules() for stage in range(1, 5)]
    return [[layer.out_channels for layer in stage if isinstance(layer, nn.Conv2d)][-1] for stage in stages]


def _build_backbone(shapes: Shapes, options: Options) -> nn.Module:
    if "backbone.layer1.0.conv1.weight" in shapes:
        return _build_resnet(shapes, options)
    if "backbone.layer1.0.depthwise.conv.weight" in shapes:
        channels = tuple(_out(shapes, f"backbone.{block}.project.conv") for block in LAST_BLOCKS)
        width = next((width for width in WIDTHS if stage_channels(width) == channels), None)
        if width is None:
            raise CheckpointError(f"a MobileNetV2 with stages of {channels} channels; we know the widths {WIDTHS}")
        return MobileNetV2(width=width, output_stride=options.output_stride)
    if "backbone.layer1.0.fused.conv.weight" in shapes:
        return MobileNetEdgeTPU()
    if not any(key.startswith("backbone.") for key in shapes):
        found = sorted({key.split(".")[0] for key in shapes})
        raise CheckpointError(
            f"no names of a backbone, but of {', '.join(found[:5])}: not an architecture that we know"
        )
    raise CheckpointError("the backbone is none of ResNetV1, V1c and V1d, our MobileNetV2 and MobileNet-EdgeTPU")


def _build_resnet(shapes: Shapes, options: Options) -> nn.Module:
    plain = _shape(shapes, "backbone.stem.0")[2:] == (7, 7)
    for stem in () if plain else ("stem.3", "stem.6"):
        _shape(shapes, f"backbone.{stem}")
    hidden, last = (None, "stem.0") if plain else (_out(shapes, "backbone.stem.0"), "stem.6")
    return ResNet(
        [_count_blocks(shapes, stage) for stage in range(1, 5)],
        block=Bottleneck if "backbone.layer1.0.conv3.weight" in shapes else BasicBlock,
        stem_channels=(hidden, _out(shapes, f"backbone.{last}")),
        planes=[_out(shapes, f"backbone.layer{stage}.0.conv1") for stage in range(1, 5)],
        contract_dilation=options.contract_dilation,
        ceil_mode=options.ceil_mode,
        # Where the others have a norm, V1d has the convolution: a pooling without weights comes first.
        avg_down=len(shapes.get("backbone.layer2.0.downsample.1.weight", ())) > 1,
    )


def _build_head(shapes: Shapes, options: Options) -> Head:
    classifier_channels = _in(shapes, "decode_head.conv_seg")
    num_classes = _out(shapes, "decode_head.conv_seg")
    if num_classes not in range(2, MAX_CLASSES + 1):
        raise CheckpointError(f"it has {num_classes} classes; masks are of 2 to {MAX_CLASSES}")
    if "decode_head.fusion.stages.0.key_project.conv.weight" in shapes:
        return _build_ann(shapes, num_classes, classifier_channels)
    if "decode_head.pam.query_project.weight" in shapes:
        return DAHead(
            _in(shapes, "decode_head.pam_in_conv.conv"),
            _out(shapes, "decode_head.pam_in_conv.conv"),
            num_classes,
            query_channels=_out(shapes, "decode_head.pam.query_project"),
            classifier_channels=classifier_channels,
        )
    if "decode_head.psp_modules.0.1.conv.weight" in shapes:
        return PSPHead(
            _in(shapes, "decode_head.psp_modules.0.1.conv"),
            _out(shapes, "decode_head.psp_modules.0.1.conv"),
            num_classes,
            align_corners=options.align_corners,
            classifier_channels=classifier_channels,
        )
    if "decode_head.convs.0.conv.weight" not in shapes:
        parts = sorted({key.split(".")[1] for key in shapes if key.startswith("decode_head.")})
        raise CheckpointError(
            f"the head is none of CCNet, ANN, Non-local, DANet, GCNet, PSPNet and FCN: it has {', '.join(parts)}"
        )
    return _build_fcn(shapes, options, num_classes, classifier_channels)


def _build_ann(shapes: Shapes, num_classes: int, classifier_channels: int) -> Head:
    fusion, context = "decode_head.fusion", "decode_head.context"
    attentions = [f"{block}.stages.0" for block in (fusion, context)]
    inner = [(_out(shapes, f"{name}.key_project.conv"), _out(shapes, f"{name}.value_project")) for name in attentions]
    return ANNHead(
        (_in(shapes, f"{fusion}.stages.0.key_project.conv"), _in(shapes, f"{fusion}.stages.0.query_project.conv")),
        _out(shapes, "decode_head.bottleneck.conv"),
        num_classes,
        inner_channels=(inner[0], inner[1]),
        out_channels=(_out(shapes, f"{fusion}.bottleneck.conv"), _out(shapes, f"{context}.bottleneck.conv")),
        classifier_channels=classifier_channels,
    )


def _build_fcn(shapes: Shapes, options: Options, num_classes: int, classifier_channels: int) -> Head:
    """The plain head, or one of those that put their attention into its frame."""
    in_channels, channels = _in(shapes, "decode_head.convs.0.conv"), _out(shapes, "decode_head.convs.0.conv")
    if "decode_head.cca.query_conv.weight" in shapes:
        return CCHead(
            in_channels,
            channels,
            num_classes,
            query_channels=_out(shapes, "decode_head.cca.query_conv"),
            recurrence=options.recurrence,
            context_channels=_out(shapes, "decode_head.conv_cat.conv"),
            classifier_channels=classifier_channels,
            slope=options.slope,
        )
    if "decode_head.nl_block.g.conv.weight" in shapes:
        return NonLocalHead(
            in_channels,
            channels,
            num_classes,
            inner_channels=_out(shapes, "decode_head.nl_block.g.conv"),
            classifier_channels=classifier_channels,
        )
    if "decode_head.gc_block.conv_mask.weight" in shapes:
        return GCHead(
            in_channels,
            channels,
            num_classes,
            inner_channels=_out(shapes, "decode_head.gc_block.channel_add_conv.0"),
            classifier_channels=classifier_channels,
        )
    return FCNHead(in_channels, channels, num_classes, classifier_channels=classifier_channels)


def _build_decoder(shapes: Shapes) -> Decoder | None:
    if "decoder.stride8.mix.conv.weight" not in shapes:
        return None
    outs = _out(shapes, "decoder.stride4.mix.conv"), _out(shapes, "decoder.stride8.mix.conv")
    fine4 = _in(shapes, "decoder.stride4.mix.conv") - outs[1]
    fine8 = _out(shapes, "backbone.layer2.0.project.conv")
    return Decoder(_in(shapes, "decoder.stride8.mix.conv") - fine8, (fine4, fine8), outs)


def _count_blocks(shapes: Shapes, stage: int) -> int:
    prefix = f"backbone.layer{stage}."
    return len({key.split(".")[2] for key in shapes if key.startswith(prefix)})


def _out(shapes: Shapes, module: str) -> int:
    return _shape(shapes, module)[0]


def _in(shapes: Shapes, module: str) -> int:
    return _shape(shapes, module)[1]


def _shape(shapes: Shapes, module: str) -> torch.Size:
    try:
        shape = shapes[f"{module}.weight"]
    except KeyError:
        raise CheckpointError(f"no tensor {module}.weight: not an architecture that we know") from None
    if len(shape) != 4 or 0 in shape:
        raise CheckpointError(f"{module}.weight is {list(shape)}, which is no convolution")
    return shape
