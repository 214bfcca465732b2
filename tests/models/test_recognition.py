"""Which specification a file gets: by what is said of it, its name, itself, its layout and class count."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from models import recognition, zoo
from models.card import Card
from models.data_sets import ADE20K, CITYSCAPES, VOC, DataSet
from models.errors import CheckpointError
from models.heads.ccnet import CCHead
from models.recognition import recognise
from models.registry import list_models, load_model
from models.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from models.windows import Inference
from tests.models.reference import NETWORKS, Sizes, random_state, shapes_of
from tests.models.test_mmseg_meta import NEW, OLD

SLIDE = Inference("slide", (769, 769), (513, 513))
TITLES = {
    "official_ccnet": "CCNet",
    "official_ann": "ANN",
    "ccnet": "CCNet",
    "ann": "ANN",
    "nonlocal": "Non-local",
    "danet": "DANet",
    "gcnet": "GCNet",
    "pspnet": "PSPNet",
    "fcn": "FCN",
}


def write(tmp_path: Path, network: str = "ccnet", classes: int = 19, name: str = "model.pth", meta: Any = None) -> Path:
    path = tmp_path / name
    state = random_state(shapes_of(network, Sizes(blocks=(3, 4, 6, 3), classes=classes)))
    if path.suffix == ".safetensors":
        save_file(state, path, meta)
    else:
        torch.save(state if meta is None else {"state_dict": state, "meta": meta}, path)
    return path


@pytest.mark.parametrize("data_set", [CITYSCAPES, ADE20K, VOC], ids=lambda data_set: data_set.name)
def test_by_keys_and_class_count(tmp_path: Path, data_set: DataSet) -> None:
    path = write(tmp_path, classes=len(data_set.classes.names))
    spec = recognise(path)
    assert spec.name == "model"
    assert spec.title == f"CCNet, ResNet-50, {data_set.name}"
    assert (spec.weights, spec.sha256) == (path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert (spec.classes, spec.dataset) == (data_set.classes, data_set.name)
    assert spec.preprocessing == Preprocessing(data_set.scale, IMAGENET_MEAN, IMAGENET_STD, antialias=False)
    assert (spec.inference, spec.align_corners, spec.miou) == (Inference(), False, None)
    assert load_model(spec).num_classes == len(data_set.classes.names)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_layout_and_head_has_its_name(tmp_path: Path, network: str) -> None:
    assert recognise(write(tmp_path, network)).title == f"{TITLES[network]}, ResNet-50, Cityscapes"


def test_the_official_ccnet(tmp_path: Path) -> None:
    spec = recognise(write(tmp_path, "official_ccnet"))
    assert spec.preprocessing == Preprocessing(
        (2048, 1024), (122.67891434, 116.66876762, 104.00698793), (1.0, 1.0, 1.0), bgr=True, antialias=False
    )
    windows = replace(SLIDE, below_crop="pad", upsampling="once", average="logits")
    assert (spec.inference, spec.align_corners) == (windows, True)
    assert load_model(spec).align_corners


def test_the_official_ann(tmp_path: Path) -> None:
    spec = recognise(write(tmp_path, "official_ann"))
    assert spec.preprocessing == Preprocessing(
        (2048, 1024), (122.7717, 115.9465, 102.9801), (1.0, 1.0, 1.0), bgr=True, antialias=False
    )
    whole = Inference("whole", (864, 864), (576, 576), below_crop="whole", upsampling="bicubic", average="logits")
    assert (spec.inference, spec.align_corners) == (whole, True)


@pytest.mark.parametrize("spec", list_models(), ids=lambda spec: spec.name)
def test_the_bundled_ones_are_recognised_as_they_are_registered(spec: Any) -> None:
    found = recognise(spec.weights)
    for field in ("name", "weights", "sha256", "classes", "preprocessing", "dataset", "inference", "align_corners"):
        assert getattr(found, field) == getattr(spec, field), field


# --- published ones


def published(monkeypatch: pytest.MonkeyPatch, path: Path, **changed: Any) -> zoo.Published:
    """A row of the table for a file that is here, as if it were published."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    row = zoo.Published("ccnet", 50, "cityscapes", "769x769", "40k", 78.46, f"20200616_145125-{digest[:8]}")
    row = row._replace(**changed)
    monkeypatch.setattr(zoo, "PUBLISHED", (row,))
    return row


def test_by_name_and_hash_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    row = published(monkeypatch, path)
    spec = recognise(path.rename(tmp_path / row.file))
    assert spec.title == "CCNet, ResNet-50, Cityscapes, 769x769, 40k"
    assert (spec.miou, spec.dataset, spec.classes) == (78.46, "Cityscapes", CITYSCAPES.classes)
    assert spec.preprocessing == Preprocessing((2049, 1025), IMAGENET_MEAN, IMAGENET_STD, antialias=False)
    assert (spec.inference, spec.align_corners) == (SLIDE, True)
    assert spec.source == f"mmsegmentation, {row.file}"


def test_a_published_name_with_another_hash_keeps_the_configuration_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    row = published(monkeypatch, path, stamp="20200616_145125-00000000")
    spec = recognise(path.rename(tmp_path / row.file))
    assert (spec.miou, spec.title) == (None, "CCNet, ResNet-50, Cityscapes")
    assert (spec.inference, spec.align_corners, spec.preprocessing.scale) == (SLIDE, True, (2049, 1025))
    assert "but its SHA-256 begins with " + spec.sha256[:8] in spec.source


def test_a_published_name_with_other_classes_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, classes=21)
    row = published(monkeypatch, path)
    spec = recognise(path.rename(tmp_path / row.file))
    assert (spec.dataset, spec.inference, spec.miou) == (VOC.name, Inference(), None)


@pytest.mark.parametrize("row", zoo.PUBLISHED, ids=lambda row: row.name)
def test_each_published_one_gets_its_evaluation(row: zoo.Published, tmp_path: Path) -> None:
    """Under its name, since nobody can make a file of its hash."""
    classes = len(row.data_set.classes.names)
    path = tmp_path / row.file
    torch.save(random_state(shapes_of(row.head, Sizes(classes=classes))), path)
    spec = recognise(path)
    slides = row.crop == "769x769"
    scale = (2049, 1025) if slides else {"cityscapes": (2048, 1024)}.get(row.data, (2048, 512))
    assert spec.classes == row.data_set.classes
    assert (spec.preprocessing.scale, spec.preprocessing.bgr) == (scale, False)
    assert (spec.inference, spec.align_corners) == (SLIDE if slides else Inference(), slides)


# --- what the file, and whoever serves it, say


def test_the_configuration_in_the_file(tmp_path: Path) -> None:
    meta = {"config": OLD, "CLASSES": ("crop", "weed"), "PALETTE": [[0, 1, 2], [3, 4, 5]]}
    spec = recognise(write(tmp_path, classes=2, meta=meta))
    assert (spec.classes.names, spec.classes.palette) == (("crop", "weed"), ((0, 1, 2), (3, 4, 5)))
    assert (spec.preprocessing.scale, spec.inference, spec.align_corners) == ((2049, 1025), SLIDE, True)
    assert (spec.title, spec.dataset) == ("CCNet, ResNet-50, its own", "its own")
    other = recognise(write(tmp_path, classes=2, meta={"cfg": NEW, "dataset_meta": {"classes": ["a", "b"]}}))
    assert (other.preprocessing.mean, other.preprocessing.bgr) == ((123.7, 116.3, 103.5), True)
    assert len(set(other.classes.palette)) == 2


def test_classes_of_another_number_are_of_the_weights_it_began_with(tmp_path: Path) -> None:
    meta = {"CLASSES": CITYSCAPES.classes.names, "PALETTE": [list(color) for color in CITYSCAPES.classes.palette]}
    assert recognise(write(tmp_path, classes=21, meta=meta)).classes == VOC.classes
    with pytest.raises(CheckpointError, match="it has 7 classes, and neither the file"):
        recognise(write(tmp_path, classes=7, meta=meta))


def test_other_names_are_another_data_set(tmp_path: Path) -> None:
    names = tuple(f"thing {index}" for index in range(19))
    spec = recognise(write(tmp_path), Card(classes=names))
    assert (spec.classes.names, spec.dataset, spec.preprocessing.scale) == (names, "its own", (2048, 512))
    assert spec.classes.palette != CITYSCAPES.classes.palette
    assert len(set(spec.classes.palette)) == 19


def test_what_is_said_goes_before_all_else(tmp_path: Path) -> None:
    said = Card(
        title="Mine",
        palette=tuple((index, 0, 0) for index in range(19)),
        mean=(1.0, 2.0, 3.0),
        bgr=True,
        scale=(64, 32),
        mode="slide",
        crop=(16, 16),
        stride=(8, 8),
        scales=(0.5, 1.0),
        flip=True,
        below_crop="pad",
        upsampling="once",
        average="logits",
        align_corners=True,
        miou=50.0,
        licence="CC0",
        source="here",
    )
    path = write(tmp_path, meta={"config": OLD.replace("num_classes=2", "num_classes=19")})
    spec = recognise(path, said)
    assert (spec.title, spec.miou, spec.licence, spec.source) == ("Mine", 50.0, "CC0", "here")
    assert spec.classes == replace(CITYSCAPES.classes, palette=said.palette)
    assert spec.preprocessing == Preprocessing((64, 32), (1.0, 2.0, 3.0), IMAGENET_STD, bgr=True, antialias=False)
    assert (spec.inference, spec.align_corners) == (
        Inference("slide", (16, 16), (8, 8), (0.5, 1.0), True, "pad", "once", "logits"),
        True,
    )


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (Card(classes=("a", "b")), "it has 19 classes, but 2 names are given"),
        (Card(palette=((1, 2, 3),)), "it has 19 classes, but 1 colours are given"),
        (Card(crop=(8, 8), stride=(9, 9)), "would leave gaps"),
        (Card(scales=(0.0,)), "at least one, all positive"),
        (Card(scale=(0, 8)), r"scale is \(0, 8\); both sides must be positive"),
        (Card(std=(0.0, 1.0, 1.0)), "no std 0"),
        (Card(multiple=0), "multiple is 0"),
    ],
)
def test_what_is_said_must_fit(tmp_path: Path, said: Card, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"model\.pth: .*{message}"):
        recognise(write(tmp_path), said)


def test_a_header_of_ours(tmp_path: Path) -> None:
    header = {
        "classes": json.dumps({"names": ["a", "b", "c"]}),
        "preprocessing": json.dumps({"scale": [96, 64], "mean": [1, 2, 3], "std": [4, 5, 6], "bgr": True}),
        "inference": json.dumps(
            {"mode": "slide", "crop": [32, 32], "stride": [16, 16], "average": "logits", "upsampling": 7}
        ),
        "align_corners": "true",
        "recurrence": "1",
    }
    spec = recognise(write(tmp_path, classes=3, name="model.safetensors", meta=header))
    assert spec.classes.names == ("a", "b", "c")
    assert spec.preprocessing == Preprocessing((96, 64), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), bgr=True)
    assert (spec.inference, spec.align_corners) == (Inference("slide", (32, 32), (16, 16), average="logits"), True)


def test_weights_are_not_read(tmp_path: Path) -> None:
    """NaN is found when the model is loaded: recognising a file stays cheap."""
    path = write(tmp_path)
    state = torch.load(path, weights_only=True)
    state["decode_head.conv_seg.bias"][0] = float("nan")
    torch.save(state, path)
    spec = recognise(path)
    with pytest.raises(CheckpointError, match="NaN"):
        load_model(spec)


@pytest.mark.parametrize("size", [0, 2, 1000])
def test_a_broken_file_is_one_sentence(tmp_path: Path, size: int) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"model\.pth: (not|a damaged or truncated) .*torch checkpoint"):
        recognise(path)


def test_depths_nobody_published_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(random_state(shapes_of("ccnet", Sizes(blocks=(1, 2, 1, 3), classes=19))), path)
    assert recognise(path).title == "CCNet, ResNet with 1+2+1+3 blocks, Cityscapes"
    torch.save(random_state(shapes_of("ccnet", Sizes(blocks=(2, 2, 2, 2), classes=19, basic=True))), path)
    assert recognise(path).title == "CCNet, ResNet-18, Cityscapes"


def test_every_head_has_a_title() -> None:
    assert set(recognition.HEADS.values()) == set(TITLES.values())


def test_recurrence_is_as_whoever_serves_it_says(tmp_path: Path) -> None:
    """Of an official CCNet's, nothing in the file tells."""
    path = write(tmp_path, "official_ccnet")
    for said, expected in ((None, 2), (1, 1), (3, 3)):
        head = load_model(recognise(path, Card(recurrence=said))).decode_head
        assert isinstance(head, CCHead)
        assert head.recurrence == expected
    with pytest.raises(CheckpointError, match="recurrence is of CCNet, and it is ANN"):
        recognise(write(tmp_path, "ann"), Card(recurrence=1))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (Card(scale=(65535, 65535)), "scale 65535x65535, 1 times that, makes inputs above the limit, 33554432 pixels"),
        (Card(scales=(1.0, 1e200)), r"scale 2048x1024, 1e\+200 times that"),
        (Card(multiple=8192), "multiple 8192 makes inputs above the limit"),
        (Card(crop=(10000, 10000), below_crop="pad"), "crop 10000x10000 makes inputs above the limit"),
    ],
)
def test_inputs_that_would_take_all_memory_are_refused(tmp_path: Path, said: Card, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        recognise(write(tmp_path), said)
