"""A checkpoint file to all that is needed to serve it."""

from __future__ import annotations

from dataclasses import fields
from hashlib import file_digest
from pathlib import Path
from typing import TypeVar

from models import data_sets, zoo
from models.backbones.mobilenet import MobileNetV2
from models.backbones.mobilenet_edgetpu import MobileNetEdgeTPU
from models.backbones.resnet import BLOCKS, BasicBlock, ResNet
from models.card import NOTHING_SAID, Card, first_said, of_header
from models.checkpoint import Checkpoint, prepare_segmentor, read_checkpoint
from models.classes import ClassSet, default_palette
from models.data_sets import DATA_SETS, DataSet
from models.errors import CheckpointError
from models.heads.ann import ANNHead
from models.heads.ccnet import CCHead
from models.heads.danet import DAHead
from models.heads.fcn import FCNHead
from models.heads.gcnet import GCHead
from models.heads.non_local import NonLocalHead
from models.heads.pspnet import PSPHead
from models.layouts import OFFICIAL_ANN, OFFICIAL_CCNET
from models.mmseg_meta import of_meta
from models.registry import ModelSpec
from models.segmentor import Segmentor
from models.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from models.windows import WHOLE, Inference
from models.zoo import Published

Value = TypeVar("Value")

MAX_INPUT_PIXELS = 1 << 25  # 8192x4096, four times what Cityscapes is evaluated at with scale 2

HEADS = {
    CCHead: "CCNet",
    ANNHead: "ANN",
    NonLocalHead: "Non-local",
    DAHead: "DANet",
    GCHead: "GCNet",
    PSPHead: "PSPNet",
    FCNHead: "FCN",
}

# What mmsegmentation does with most data sets, for a file that says nothing and whose data set is not known.
USUAL = Card(
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    bgr=False,
    scale=(2048, 512),
    multiple=1,
    antialias=False,
    mode="whole",
    crop=WHOLE.crop,
    stride=WHOLE.stride,
    scales=WHOLE.scales,
    flip=WHOLE.flip,
    below_crop=WHOLE.below_crop,
    upsampling=WHOLE.upsampling,
    average=WHOLE.average,
    licence="not stated",
)
# What the authors' own scripts do, with means in RGB. CCNet's evaluates in windows that overlap by a third; ANN's looks
# at the whole image, and has windows of its own for those who ask for them.
OFFICIAL = {
    OFFICIAL_CCNET.title: Card(
        mean=(122.67891434, 116.66876762, 104.00698793),
        std=(1.0, 1.0, 1.0),
        bgr=True,
        mode="slide",
        below_crop="pad",
        upsampling="once",
        average="logits",
    ),
    OFFICIAL_ANN.title: Card(
        mean=(122.7717, 115.9465, 102.9801),
        std=(1.0, 1.0, 1.0),
        bgr=True,
        crop=(864, 864),
        stride=(576, 576),
        below_crop="whole",
        upsampling="bicubic",
        average="logits",
    ),
}


def recognise(path: str | Path, said: Card = NOTHING_SAID) -> ModelSpec:
    """What a checkpoint file is, without reading its weights but for their hash.

    Each property is the first that is found: in `said`, by the file's name if it is that of a published checkpoint, in
    the file itself, by its layout and its number of classes.

    Args:
        said: by whoever wants it served

    Raises:
        CheckpointError: as `load_segmentor`; or nothing tells what its classes are, or what is said contradicts it
    """
    path = Path(path)
    checkpoint = read_checkpoint(path, weights=False)
    segmentor = prepare_segmentor(path, checkpoint)
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    try:
        return _specified(path, checkpoint, segmentor, digest, said)
    except ValueError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc


def _specified(path: Path, checkpoint: Checkpoint, segmentor: Segmentor, digest: str, said: Card) -> ModelSpec:
    card = first_said(said, _of_name(path.name, segmentor, digest), _of_file(checkpoint, segmentor.num_classes))
    classes, data_set = _classes(card, segmentor.num_classes)
    scale = NOTHING_SAID if data_set is None else Card(scale=data_set.scale)
    card = first_said(card, OFFICIAL.get(checkpoint.layout.title, NOTHING_SAID), scale, USUAL)
    dataset = card.dataset or ("its own" if data_set is None else data_set.name)
    preprocessing = Preprocessing(
        *(_sure(card.scale), _sure(card.mean), _sure(card.std), _sure(card.multiple)),
        bgr=_sure(card.bgr),
        antialias=_sure(card.antialias),
    )
    inference = Inference(**{field.name: _sure(getattr(card, field.name)) for field in fields(Inference)})
    _check_sizes(preprocessing, inference)
    if card.recurrence is not None and not isinstance(segmentor.decode_head, CCHead):
        raise ValueError(f"recurrence is of CCNet, and it is {HEADS[type(segmentor.decode_head)]}")
    return ModelSpec(
        name=path.stem,
        title=card.title or f"{_architecture(segmentor)}, {dataset}",
        weights=path,
        sha256=digest,
        classes=classes,
        preprocessing=preprocessing,
        miou=card.miou,
        dataset=dataset,
        licence=_sure(card.licence),
        source=card.source or f"{path.name}, in the layout of {checkpoint.layout.title}",
        inference=inference,
        align_corners=segmentor.align_corners if card.align_corners is None else card.align_corners,
        recurrence=card.recurrence,
    )


def _check_sizes(preprocessing: Preprocessing, inference: Inference) -> None:
    """
    Raises:
        ValueError: an input so large that the first pass would take all memory there is, and the server with it
    """
    (one, other), factor = preprocessing.scale, max(inference.scales)
    if one * other > MAX_INPUT_PIXELS / factor / factor:
        raise ValueError(
            f"scale {one}x{other}, {factor:g} times that, makes inputs above the limit, {MAX_INPUT_PIXELS} pixels"
        )
    if preprocessing.multiple**2 > MAX_INPUT_PIXELS:
        raise ValueError(f"multiple {preprocessing.multiple} makes inputs above the limit, {MAX_INPUT_PIXELS} pixels")
    one, other = inference.crop
    if inference.below_crop == "pad" and one * other > MAX_INPUT_PIXELS:
        raise ValueError(f"crop {one}x{other} makes inputs above the limit, {MAX_INPUT_PIXELS} pixels")


def _sure(value: Value | None) -> Value:
    """A value that is there, since `USUAL` has it if nothing else does."""
    assert value is not None
    return value


def _of_name(name: str, segmentor: Segmentor, digest: str) -> Card:
    """What the name of a published checkpoint says; its accuracy, only of a file that is the published one."""
    published = zoo.of_file_name(name)
    if published is None or len(published.data_set.classes.names) != segmentor.num_classes:
        return NOTHING_SAID
    card = _of_published(published)
    if digest.startswith(published.hash_prefix):
        return first_said(Card(title=published.title, miou=published.miou, source=f"mmsegmentation, {name}"), card)
    doubt = f"named as mmsegmentation's {published.name}, but its SHA-256 begins with {digest[:8]}"
    return first_said(Card(source=doubt), card)


def _of_published(published: Published) -> Card:
    data_set = published.data_set
    card = Card(dataset=data_set.name, classes=data_set.classes.names, palette=data_set.classes.palette)
    if published.slides:
        windows = Card(scale=(2049, 1025), mode="slide", crop=(769, 769), stride=(513, 513), align_corners=True)
        return first_said(card, windows)
    return first_said(card, Card(scale=data_set.scale, mode="whole", align_corners=False))


def _of_file(checkpoint: Checkpoint, num_classes: int) -> Card:
    """What the file says of itself. Classes of another number are those of the weights that training began with."""
    card = first_said(of_header(checkpoint.metadata), of_meta(checkpoint.meta))
    if card.classes is None or len(card.classes) == num_classes:
        return card
    return first_said(Card(classes=(), palette=()), card)


def _classes(card: Card, count: int) -> tuple[ClassSet, DataSet | None]:
    """The classes, and the data set that they are of, if it is one of those we know."""
    known = data_sets.of_class_count(count)
    names, palette = card.classes, card.palette
    if not names:
        if known is None:
            counts = ", ".join(f"{len(one.classes.names)} ({one.name})" for one in DATA_SETS)
            raise ValueError(
                f"it has {count} classes, and neither the file nor a YAML file beside it says which; "
                f"we know data sets of {counts}"
            )
        names = known.classes.names
    if len(names) != count:
        raise ValueError(f"it has {count} classes, but {len(names)} names are given")
    if known is not None and names != known.classes.names:
        known = None
    if not palette:
        palette = default_palette(count) if known is None else known.classes.palette
    if len(palette) != count:
        raise ValueError(f"it has {count} classes, but {len(palette)} colours are given")
    return ClassSet(names, palette), known


def _architecture(segmentor: Segmentor) -> str:
    return f"{HEADS[type(segmentor.decode_head)]}, {_backbone(segmentor.backbone)}"


def _backbone(backbone: object) -> str:
    if isinstance(backbone, MobileNetV2):
        return "MobileNetV2"
    if isinstance(backbone, MobileNetEdgeTPU):
        return "MobileNet-EdgeTPU"
    assert isinstance(backbone, ResNet)
    blocks = tuple(len(stage) for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4))
    depths = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)} if isinstance(backbone.layer1[0], BasicBlock) else BLOCKS
    named = (f"ResNet-{depth}" for depth, counts in depths.items() if counts == blocks)
    return next(named, f"ResNet with {'+'.join(map(str, blocks))} blocks")
