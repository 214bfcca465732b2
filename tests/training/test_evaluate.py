"""Evaluation of a network whose answers are known: it reads the class off the pixel's colour."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import Card, Inference, Segmentor, Trace, recognise
from models.checkpoint import save_segmentor
from models.heads.fcn import Head
from models.registry import CAMVID_PREPROCESSING
from models.transforms import Preprocessing
from tests.models.reference import Sizes, random_state, shapes_of
from training import evaluate as evaluation
from training.confusion import Scores
from training.data import IGNORE, Sample
from training.evaluate import evaluate, report
from training.network import new_segmentor

COLOURS = torch.tensor([[220, 30, 30], [30, 220, 30], [30, 30, 220]], dtype=torch.uint8)


class PixelBackbone(nn.Module):
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"c4": image}


class PixelHead(Head):
    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Trace, ...]]:
        return features["c4"], ()


def colour_reader(answers: list[int]) -> Segmentor:
    """A segmentor that answers `answers[k]` where the pixel has colour k."""
    colours = (COLOURS - torch.tensor(CAMVID_PREPROCESSING.mean)) / torch.tensor(CAMVID_PREPROCESSING.std)
    head = PixelHead(3, 3)
    with torch.no_grad():
        # Nearest colour: |x - c|^2 without its |x|^2, which all classes share.
        head.conv_seg.weight[answers] = 2 * colours[:, :, None, None]
        head.conv_seg.bias = nn.Parameter(-colours.square().sum(1)[torch.tensor(answers).argsort()])
    return Segmentor(PixelBackbone(), head)


def coloured_sample(seed: int, height: int = 360, width: int = 480) -> Sample:
    """Blocks of random classes in their colours, the first rows unlabelled."""
    blocks = torch.randint(3, (height // 30, width // 30), generator=torch.Generator().manual_seed(seed))
    mask = blocks.repeat_interleave(30, 0).repeat_interleave(30, 1).to(torch.uint8)
    image = COLOURS[mask.long()]
    mask[:7] = IGNORE
    return Sample(str(seed), image, mask)


def test_perfect_answers_score_a_hundred() -> None:
    result = evaluate(colour_reader([0, 1, 2]), [coloured_sample(0), coloured_sample(1)], CAMVID_PREPROCESSING)
    assert result == Scores(100, 100, (100, 100, 100))


def test_swapped_classes_score_nothing_but_the_third() -> None:
    result = evaluate(colour_reader([1, 0, 2]), [coloured_sample(0)], CAMVID_PREPROCESSING)
    assert result.iou == (0, 0, 100)
    assert result.miou == pytest.approx(100 / 3)
    assert 0 < result.accuracy < 100


@pytest.mark.parametrize(("height", "width"), [(120, 150), (600, 540)])
def test_images_of_other_sizes_are_scored_at_their_own(height: int, width: int) -> None:
    sample = coloured_sample(2, height, width)
    assert evaluate(colour_reader([0, 1, 2]), [sample], CAMVID_PREPROCESSING).accuracy > 95


def test_evaluation_switches_dropout_off() -> None:
    segmentor = colour_reader([0, 1, 2]).train()
    assert evaluate(segmentor, [coloured_sample(0)], CAMVID_PREPROCESSING).accuracy == 100
    assert not segmentor.training


def test_report_has_a_row_for_each_class_and_the_summary() -> None:
    text = report(Scores(70, 90.5, (60, 80)), ["sky", "road"])
    assert [line.split() for line in text.splitlines()] == [
        ["sky", "60.00"],
        ["road", "80.00"],
        ["mIoU", "70.00"],
        ["accuracy", "90.50"],
    ]


def test_command_prints_the_scores_of_a_checkpoint(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.safetensors"
    save_segmentor(new_segmentor("fcn", 11, None, 16), weights, {})
    monkeypatch.setattr("sys.argv", ["evaluate", str(weights), "--data", str(data_set), "--split", "val"])
    assert evaluation.main() == 0
    printed = capsys.readouterr().out
    assert "bicyclist" in printed
    assert "mIoU" in printed


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, Preprocessing, Inference]]:
    """How each image was looked at: align_corners, and the rest."""
    noted = []

    def note(segmentor: Segmentor, image: Tensor, preprocessing: Preprocessing, inference: Inference) -> list[Tensor]:
        noted.append((segmentor.align_corners, preprocessing, inference))
        return [torch.zeros(image.shape[:2], dtype=torch.uint8)]

    monkeypatch.setattr(evaluation, "segment_image", note)
    return noted


def test_the_image_is_looked_at_as_the_file_says_unless_asked_otherwise(
    data_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    looks: list[tuple[bool, Preprocessing, Inference]],
) -> None:
    said = Inference(mode="slide", crop=(120, 160), stride=(80, 100), scales=(1.0, 0.5))
    weights = tmp_path / "weights.safetensors"
    save_segmentor(new_segmentor("fcn", 11, None, 16), weights, {"inference": json.dumps(asdict(said))})
    for options in ([], ["--flip"], ["--scales", "0.75"]):
        monkeypatch.setattr("sys.argv", ["evaluate", str(weights), "--data", str(data_set), "--split", "val", *options])
        assert evaluation.main() == 0
    seen = [inference for _, _, inference in looks]
    assert list(dict.fromkeys(seen)) == [said, replace(said, flip=True), replace(said, scales=(0.75,))]


@pytest.mark.parametrize("classes", [19, 12])
@pytest.mark.parametrize("network", ["official_ccnet", "official_ann", "ccnet"])
def test_networks_of_others_see_what_they_were_trained_to_see(
    network: str,
    classes: int,
    data_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    looks: list[tuple[bool, Preprocessing, Inference]],
) -> None:
    """The official ones blue first, without division; at Cityscapes' size, whatever its classes are called."""
    weights, labels = tmp_path / "weights.pth", tmp_path / "labels.json"
    torch.save(random_state(shapes_of(network, Sizes(classes=classes))), weights)
    names = tuple(f"class {index}" for index in range(classes))
    labels.write_text(json.dumps({"names": names, "palette": [[0, 0, 0]] * classes}))
    options = ["--data", str(data_set), "--split", "val", "--labels", str(labels)]
    monkeypatch.setattr("sys.argv", ["evaluate", str(weights), *options])
    assert evaluation.main() == 0
    spec = recognise(weights) if classes == 19 else recognise(weights, Card(classes=names))
    assert looks == [(spec.align_corners, spec.preprocessing, spec.inference)]
