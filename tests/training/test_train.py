"""A training of a few steps on drawn scenes: it learns, can be interrupted, and leaves a checkpoint that loads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import load_segmentor
from models.backbones.mobilenet_edgetpu import MobileNetEdgeTPU
from models.checkpoint import read_checkpoint
from training.data import load_split
from training.labels import CAMVID_LABELS
from training.network import HeadName
from training.train import main, train
from training.trainer import Recipe, Start, Trainer

# Four scenes in batches of two: two steps an epoch.
SHORT = Recipe(epochs=2, batch_size=2, crop=64, warmup_steps=1, drawn_share=0.25)

Run = Callable[..., int]


def new_trainer(recipe: Recipe, data: Path) -> Trainer:
    return Trainer(recipe, load_split(data, "train", CAMVID_LABELS), CAMVID_LABELS, Start())


def test_loss_falls_and_every_tenth_epoch_is_validated(
    data_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A smaller crop shows each time another part of the scene, whose loss differs by more than ten steps gain.
    recipe = replace(SHORT, head="fcn", epochs=10, batch_size=4, crop=96, learning_rate=6e-3, drawn_share=0)
    train(recipe, data_set, CAMVID_LABELS, Start(), tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    losses = [float(re.findall(r"loss (\d+\.\d+)", line)[0]) for line in lines]
    assert len(losses) == 10
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert ["val mIoU" in line for line in lines] == [False] * 9 + [True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the gradient of bilinear resizing is not repeatable on CUDA")
def test_interrupted_training_ends_with_the_same_weights(data_set: Path, tmp_path: Path) -> None:
    through = train(SHORT, data_set, CAMVID_LABELS, Start(), tmp_path / "through").averaged.state_dict()

    interrupted = new_trainer(SHORT, data_set)
    interrupted.run_epoch()
    (tmp_path / "resumed").mkdir()
    interrupted.save(tmp_path / "resumed" / "last.pt")
    torch.manual_seed(99)  # a new process would not have the old one's random state either
    resumed = train(SHORT, data_set, CAMVID_LABELS, Start(), tmp_path / "resumed").averaged.state_dict()

    before = interrupted.averaged.state_dict()
    assert any(not torch.allclose(before[key], through[key], rtol=1e-3) for key in through)
    for key, expected in through.items():
        assert torch.allclose(resumed[key], expected, rtol=1e-5, atol=1e-6), key


@pytest.mark.parametrize("head", ["ccnet", "ann"])
def test_written_weights_load_as_the_averaged_segmentor(head: HeadName, data_set: Path, tmp_path: Path) -> None:
    recipe = replace(SHORT, head=head, epochs=1, batch_size=4)
    averaged = train(recipe, data_set, CAMVID_LABELS, Start(), tmp_path).averaged
    loaded = load_segmentor(tmp_path / "weights.safetensors").state_dict()
    for key, value in averaged.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(loaded[key], value.cpu().half().float())


def test_finished_training_is_not_repeated(data_set: Path, tmp_path: Path) -> None:
    trainer = new_trainer(SHORT, data_set)
    trainer.step = SHORT.epochs * trainer.steps_per_epoch
    trainer.save(tmp_path / "last.pt")
    result = train(SHORT, data_set, CAMVID_LABELS, Start(), tmp_path).averaged.state_dict()
    assert all(torch.equal(result[key], value) for key, value in trainer.averaged.state_dict().items())


@pytest.fixture
def run(data_set: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command on the data set, one step long."""
    short = ("--head", "fcn", "--epochs", "1", "--batch-size", "4", "--crop", "64", "--seed", "7")

    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["train", "--data", str(data_set), *short, *map(str, arguments)])
        return main()

    return run


def test_command_trains_and_scores_both_splits(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--output", tmp_path) == 0
    assert "mIoU" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "weights.safetensors", "val.json", "test.json"}
    assert len(json.loads((tmp_path / "test.json").read_text())["iou"]) == 11
    assert json.loads(read_checkpoint(tmp_path / "weights.safetensors").metadata["start"]) == {}


def weights_of(net: nn.Module) -> list[Tensor]:
    return [module.weight.detach() for module in net.modules() if isinstance(module, nn.Conv2d)]


def distance(first: nn.Module, second: nn.Module) -> float:
    """Mean difference of the convolutions' weights."""
    pairs = zip(weights_of(first), weights_of(second), strict=True)
    return torch.stack([(one - other).abs().mean() for one, other in pairs]).mean().item()


def test_header_names_the_file_that_training_began_from(run: Run, edgetpu_file: Path, tmp_path: Path) -> None:
    """First from a published backbone, then from the outcome of that: an EdgeTPU in both."""
    first, second = (tmp_path / folder / "weights.safetensors" for folder in ("first", "second"))
    assert run("--output", first.parent, "--backbone", edgetpu_file) == 0
    assert run("--output", second.parent, "--initial", first) == 0
    starts = [json.loads(read_checkpoint(path).metadata["start"]) for path in (first, second)]
    digests = [sha256(path.read_bytes()).hexdigest() for path in (edgetpu_file, first)]
    assert starts == [
        {"backbone": f"edgetpu.safetensors, sha256 {digests[0]}"},
        {"initial": f"weights.safetensors, sha256 {digests[1]}"},
    ]
    backbones = [load_segmentor(path).backbone for path in (first, second)]
    assert all(isinstance(backbone, MobileNetEdgeTPU) for backbone in backbones)
    # One step at the backbone's low rate leaves it close to where it began.
    assert 0 < distance(*backbones) < 0.01 < distance(backbones[0], MobileNetEdgeTPU())


def test_command_takes_one_start_alone(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run("--output", tmp_path / "out", "--backbone", tmp_path / "a", "--initial", tmp_path / "b")
    assert end.value.code == 2
    assert "argument --initial: not allowed with argument --backbone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
