"""The recipe's steps on drawn scenes: what they start from, what they minimise, and how they are taken up again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from models.checkpoint import save_segmentor
from models.classes import CAMVID, ClassSet
from models.heads.ann import ANNHead
from models.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from training.data import IGNORE, Augmentation, Sample, TrainingSet, class_frequencies, load_split
from training.labels import CAMVID_LABELS, Labels
from training.network import ExactConv2d, new_segmentor
from training.trainer import Recipe, Start, Trainer

# Four scenes in batches of two: two steps an epoch.
SHORT = Recipe(epochs=2, batch_size=2, crop=64, warmup_steps=1, drawn_share=0.25)
AFRESH = Start()
SKY_RENAMED = ClassSet(("heaven", *CAMVID.names[1:]), CAMVID.palette)


def new_trainer(recipe: Recipe, data: Path, start: Start = AFRESH, labels: Labels = CAMVID_LABELS) -> Trainer:
    return Trainer(recipe, load_split(data, "train", labels), labels, start)


def is_same(first: nn.Module, second: nn.Module) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(tensor, theirs[key]) for key, tensor in first.state_dict().items())


def test_resuming_with_another_recipe_is_refused(data_set: Path, tmp_path: Path) -> None:
    new_trainer(SHORT, data_set).save(tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt belongs to the run .*'seed': 0.*, not .*'seed': 1"):
        new_trainer(replace(SHORT, seed=1), data_set).load(tmp_path / "last.pt")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (replace(CAMVID_LABELS, classes=SKY_RENAMED), 'sky.*, not .*"heaven"'),
        (replace(CAMVID_LABELS, ignored=frozenset({11, 255})), r"'ignored': \[11\], .*, not .*'ignored': \[11, 255\]"),
    ],
    ids=["classes", "ignored"],
)
def test_resuming_with_other_labels_is_refused(labels: Labels, said: str, data_set: Path, tmp_path: Path) -> None:
    new_trainer(SHORT, data_set).save(tmp_path / "last.pt")
    with pytest.raises(ValueError, match=rf"last\.pt belongs to the run .*{said}"):
        new_trainer(SHORT, data_set, labels=labels).load(tmp_path / "last.pt")


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


def test_a_crop_without_a_pixel_for_the_auxiliary_loss_is_refused(data_set: Path) -> None:
    with pytest.raises(ValueError, match="a crop of 3 is smaller than 4 pixels"):
        new_trainer(replace(SHORT, crop=3), data_set)
    assert new_trainer(replace(SHORT, crop=4), data_set).run_epoch() > 0


def test_a_training_does_not_begin_from_two_files() -> None:
    with pytest.raises(ValueError, match="not from both"):
        Start(Path("backbone"), Path("initial"))


def test_resuming_what_began_elsewhere_is_refused(data_set: Path, mobilenet_file: Path, tmp_path: Path) -> None:
    new_trainer(SHORT, data_set).save(tmp_path / "last.pt")
    begun = new_trainer(SHORT, data_set, Start(backbone=mobilenet_file))
    with pytest.raises(ValueError, match=rf"belongs to the run .*'start': \{{\}}\}}, not .*{mobilenet_file.name}"):
        begun.load(tmp_path / "last.pt")


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "weights.safetensors" for folder in ("one", "other")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(path.parent.name)
    one, other = (Start(initial=path).record() for path in paths)
    assert one.keys() == other.keys() == {"initial"}
    assert one != other


def test_recipe_s_crop_is_what_the_network_sees(data_set: Path) -> None:
    image, mask = new_trainer(replace(SHORT, crop=48), data_set).items[0]
    assert (image.shape, mask.shape) == ((48, 48, 3), (48, 48))


def test_images_are_enlarged_as_the_recipe_says(data_set: Path) -> None:
    preprocessing = new_trainer(replace(SHORT, enlargement=1.5), data_set).preprocessing
    assert preprocessing == Preprocessing((192, 144), IMAGENET_MEAN, IMAGENET_STD, multiple=16)


@pytest.mark.parametrize(("lovasz", "auxiliary"), [(1, 0), (0, 1)])
def test_loss_grows_with_the_weight_of_each_part(lovasz: int, auxiliary: int, data_set: Path) -> None:
    recipe = replace(SHORT, head="fcn", batch_size=4)
    none, half, whole = (
        new_trainer(
            replace(recipe, lovasz_weight=factor * lovasz, auxiliary_weight=factor * auxiliary), data_set
        ).run_epoch()
        for factor in (0, 0.5, 1)
    )
    assert half - none > 0.2
    assert whole - half == pytest.approx(half - none, rel=1e-3)


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


def test_rare_classes_weigh_more(data_set: Path) -> None:
    samples = load_split(data_set, "train", CAMVID_LABELS)
    weights = new_trainer(SHORT, data_set).class_weights.cpu()
    assert weights.mean().item() == pytest.approx(1)
    rarest_first = class_frequencies(samples, 11).argsort()
    assert weights[rarest_first].diff().max() <= 0


def test_backbone_learns_at_its_own_rate(data_set: Path) -> None:
    trainer = new_trainer(replace(SHORT, learning_rate=1e-3, backbone_learning_rate=1e-5), data_set)
    trainer.run_epoch()
    backbone, rest = trainer.optimizer.param_groups
    assert rest["lr"] == pytest.approx(100 * backbone["lr"])
    assert {id(parameter) for parameter in backbone["params"]} == {
        id(parameter) for parameter in trainer.segmentor.backbone.parameters()
    }
    modules = (trainer.segmentor.decode_head, trainer.segmentor.decoder, trainer.auxiliary)
    assert {id(parameter) for parameter in rest["params"]} == {
        id(parameter) for module in modules if module is not None for parameter in module.parameters()
    }


def test_published_backbone_is_trained(data_set: Path, edgetpu_file: Path) -> None:
    trainer = new_trainer(replace(SHORT, head="ann"), data_set, Start(backbone=edgetpu_file))
    assert is_same(trainer.segmentor.backbone, new_segmentor("fcn", 11, edgetpu_file, 16).backbone.to(trainer.device))
    before = [parameter.detach().clone() for parameter in trainer.segmentor.backbone.parameters()]
    assert 0 < trainer.run_epoch() < 10
    moved = [not torch.equal(*pair) for pair in zip(before, trainer.segmentor.backbone.parameters(), strict=True)]
    assert all(moved)


def test_training_goes_on_from_another_s_backbone_and_decoder(data_set: Path, tmp_path: Path) -> None:
    earlier = new_segmentor("fcn", 3, None, 16)
    save_segmentor(earlier, tmp_path / "earlier.safetensors", {}, torch.float32)
    trainer = new_trainer(SHORT, data_set, Start(initial=tmp_path / "earlier.safetensors"))
    for segmentor in (trainer.segmentor.cpu(), trainer.averaged.cpu()):
        assert segmentor.decoder is not None
        assert earlier.decoder is not None
        assert is_same(segmentor.backbone, earlier.backbone)
        assert is_same(segmentor.decoder, earlier.decoder)
        assert segmentor.num_classes == 11


@pytest.mark.skipif(torch.cuda.is_available(), reason="on CUDA nothing is kept out of autocast")
def test_on_a_cpu_the_trained_network_s_depthwise_convolutions_are_exact(data_set: Path) -> None:
    trainer = new_trainer(SHORT, data_set)
    for segmentor, kept in ((trainer.segmentor, True), (trainer.averaged, False)):
        assert any(isinstance(module, ExactConv2d) for module in segmentor.modules()) == kept
