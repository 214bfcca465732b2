"""A training of a few steps on drawn scenes: it learns, can be interrupted, and leaves a checkpoint that loads."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models import load_segmentor
from models.classes import CAMVID, ClassSet
from models.heads.ann import ANNHead
from training.data import IGNORE, Augmentation, Sample, TrainingSet, class_frequencies, load_split
from training.labels import CAMVID_LABELS, Labels
from training.network import HeadName
from training.train import Recipe, Trainer, main, train

# Four scenes in batches of two: two steps an epoch.
SHORT = Recipe(epochs=2, batch_size=2, crop=64, warmup_steps=1, drawn_share=0.25)


def new_trainer(recipe: Recipe, data: Path) -> Trainer:
    return Trainer(recipe, load_split(data, "train", CAMVID_LABELS), CAMVID_LABELS, None)


def test_loss_falls_and_every_tenth_epoch_is_validated(
    data_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A smaller crop shows each time another part of the scene, whose loss differs by more than ten steps gain.
    recipe = replace(SHORT, head="fcn", epochs=10, batch_size=4, crop=96, learning_rate=6e-3, drawn_share=0)
    train(recipe, data_set, CAMVID_LABELS, None, tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    losses = [float(re.findall(r"loss (\d+\.\d+)", line)[0]) for line in lines]
    assert len(losses) == 10
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert ["val mIoU" in line for line in lines] == [False] * 9 + [True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the gradient of bilinear resizing is not repeatable on CUDA")
def test_interrupted_training_ends_with_the_same_weights(data_set: Path, tmp_path: Path) -> None:
    through = train(SHORT, data_set, CAMVID_LABELS, None, tmp_path / "through").averaged.state_dict()

    interrupted = new_trainer(SHORT, data_set)
    interrupted.run_epoch()
    (tmp_path / "resumed").mkdir()
    interrupted.save(tmp_path / "resumed" / "last.pt")
    torch.manual_seed(99)  # a new process would not have the old one's random state either
    resumed = train(SHORT, data_set, CAMVID_LABELS, None, tmp_path / "resumed").averaged.state_dict()

    before = interrupted.averaged.state_dict()
    assert any(not torch.allclose(before[key], through[key], rtol=1e-3) for key in through)
    for key, expected in through.items():
        assert torch.allclose(resumed[key], expected, rtol=1e-5, atol=1e-6), key


def test_resuming_with_another_recipe_is_refused(data_set: Path, tmp_path: Path) -> None:
    new_trainer(SHORT, data_set).save(tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt belongs to the run .*'seed': 0.*, not .*'seed': 1"):
        train(replace(SHORT, seed=1), data_set, CAMVID_LABELS, None, tmp_path)


SKY_RENAMED = ClassSet(("heaven", *CAMVID.names[1:]), CAMVID.palette)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (replace(CAMVID_LABELS, classes=SKY_RENAMED), 'sky.*, not .*"heaven"'),
        (replace(CAMVID_LABELS, ignored=frozenset({11, 255})), r"'ignored': \[11\]\}, not .*'ignored': \[11, 255\]"),
    ],
    ids=["classes", "ignored"],
)
def test_resuming_with_other_labels_is_refused(labels: Labels, said: str, data_set: Path, tmp_path: Path) -> None:
    new_trainer(SHORT, data_set).save(tmp_path / "last.pt")
    with pytest.raises(ValueError, match=rf"last\.pt belongs to the run .*{said}"):
        train(SHORT, data_set, labels, None, tmp_path)


def spoil(path: Path, how: str) -> None:
    match how:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("not written by this program")
        case "cut off":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "a tensor":
            torch.save(torch.zeros(3), path)
        case "without a run":
            torch.save({"recipe": {}}, path)


@pytest.mark.parametrize("how", ["empty", "text", "cut off", "a tensor", "without a run"])
def test_damaged_state_is_refused_by_name(how: str, data_set: Path, tmp_path: Path) -> None:
    trainer = new_trainer(replace(SHORT, head="fcn"), data_set)
    trainer.save(tmp_path / "last.pt")
    spoil(tmp_path / "last.pt", how)
    with pytest.raises(ValueError, match=r"/last\.pt is damaged, or not from this program \(\w+\)$"):
        trainer.load(tmp_path / "last.pt")


def test_fewer_samples_than_a_batch_are_refused(data_set: Path) -> None:
    with pytest.raises(ValueError, match="4 training samples are fewer than one batch of 5"):
        new_trainer(replace(SHORT, batch_size=5), data_set)


def test_recipe_s_crop_is_what_the_network_sees(data_set: Path) -> None:
    image, mask = new_trainer(replace(SHORT, crop=48), data_set).items[0]
    assert (image.shape, mask.shape) == ((48, 48, 3), (48, 48))


def test_average_moves_a_shared_parameter_once_a_step(data_set: Path) -> None:
    trainer = new_trainer(replace(SHORT, head="ann", batch_size=4, ema_decay=0.1), data_set)
    head = trainer.segmentor.decode_head
    assert isinstance(head, ANNHead)
    assert head.context.stages[0].query_project is head.context.stages[0].key_project
    for kept in trainer.averaged.state_dict().values():
        kept.zero_()
    trainer.run_epoch()
    averaged = trainer.averaged.state_dict()
    for key, new in trainer.segmentor.state_dict().items():
        if new.is_floating_point():
            torch.testing.assert_close(averaged[key], 0.9 * new, msg=key)


def test_batch_without_a_labelled_pixel_has_no_loss(data_set: Path) -> None:
    trainer = new_trainer(SHORT, data_set)
    blank = Sample("", torch.zeros(64, 64, 3, dtype=torch.uint8), torch.full((64, 64), IGNORE, dtype=torch.uint8))
    trainer.items = TrainingSet([blank] * 4, Augmentation((64, 64)), seed=0)
    assert trainer.run_epoch() == 0
    for module in (trainer.segmentor, trainer.auxiliary, trainer.averaged):
        assert all(value.isfinite().all() for value in module.state_dict().values())


@pytest.mark.parametrize("head", ["ccnet", "ann"])
def test_written_weights_load_as_the_averaged_segmentor(head: HeadName, data_set: Path, tmp_path: Path) -> None:
    recipe = replace(SHORT, head=head, epochs=1, batch_size=4)
    averaged = train(recipe, data_set, CAMVID_LABELS, None, tmp_path).averaged
    loaded = load_segmentor(tmp_path / "weights.safetensors").state_dict()
    for key, value in averaged.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(loaded[key], value.cpu().half().float())


def test_finished_training_is_not_repeated(data_set: Path, tmp_path: Path) -> None:
    trainer = new_trainer(SHORT, data_set)
    trainer.step = SHORT.epochs * trainer.steps_per_epoch
    trainer.save(tmp_path / "last.pt")
    result = train(SHORT, data_set, CAMVID_LABELS, None, tmp_path).averaged.state_dict()
    assert all(torch.equal(result[key], value) for key, value in trainer.averaged.state_dict().items())


def test_rare_classes_weigh_more(data_set: Path) -> None:
    samples = load_split(data_set, "train", CAMVID_LABELS)
    weights = Trainer(SHORT, samples, CAMVID_LABELS, None).class_weights.cpu()
    assert weights.mean().item() == pytest.approx(1)
    rarest_first = class_frequencies(samples, 11).argsort()
    assert weights[rarest_first].diff().max() <= 0


def test_command_trains_and_scores_both_splits(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--head", "fcn", "--epochs", "1", "--batch-size", "4", "--crop", "64", "--seed", "7"]
    monkeypatch.setattr("sys.argv", ["train", "--data", str(data_set), "--output", str(tmp_path), *arguments])
    assert main() == 0
    assert "mIoU" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "weights.safetensors", "val.json", "test.json"}
    assert len(json.loads((tmp_path / "test.json").read_text())["iou"]) == 11
