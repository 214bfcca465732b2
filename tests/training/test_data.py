"""Folders of images and masks, and the augmentation that must keep the two together."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image
from torch import Tensor

from models.classes import CAMVID, ClassSet
from training.data import IGNORE, Augmentation, Sample, Steps, TrainingSet, class_frequencies, load_split
from training.labels import CAMVID_LABELS, Labels, LabelsError
from training.scenes import draw_street

# What is left is geometry, so colours still tell where a pixel came from.
GEOMETRY = Augmentation(crop=(64, 64), brightness=0, contrast=0)
PADDING = 128


def write_sample(root: Path, image: Image.Image, mask: Image.Image, name: str = "only.png") -> None:
    for folder in ("train", "trainannot"):
        (root / folder).mkdir()
    (root / "train.txt").write_text("only\n")
    image.save(root / "train" / name)
    mask.save(root / "trainannot" / "only.png")


def labels_with(count: int, *ignored: int) -> Labels:
    return Labels(ClassSet(CAMVID.names[:1] * count, CAMVID.palette[:1] * count), frozenset(ignored))


def drawn_sample(seed: int, width: int = 80, height: int = 60) -> Sample:
    image, mask = draw_street(seed, width, height)
    return Sample(f"scene{seed}", torch.from_numpy(image), torch.from_numpy(mask))


def plain_samples(count: int) -> list[Sample]:
    """Samples of one colour each: ten times their index."""
    mask = torch.zeros(40, 40, dtype=torch.uint8)
    return [Sample(str(index), torch.full((40, 40, 3), 10 * index, dtype=torch.uint8), mask) for index in range(count)]


def coloured_sample(height: int = 60, width: int = 80) -> Sample:
    """Four quarters of classes 0 to 3 whose colour is (60 * class, 200 - 60 * class, 0)."""
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[height // 2 :] += 2
    mask[:, width // 2 :] += 1
    return Sample("quarters", torch.stack([60 * mask, 200 - 60 * mask, 0 * mask], dim=2), mask)


def test_split_is_read_in_the_order_of_its_list(data_set: Path) -> None:
    samples = load_split(data_set, "train", CAMVID_LABELS)
    assert [sample.name for sample in samples] == ["scene1", "scene2", "scene3", "scene4"]
    for sample in samples:
        assert (sample.image.shape, sample.mask.shape) == ((96, 128, 3), (96, 128))
        assert (sample.image.dtype, sample.mask.dtype) == (torch.uint8, torch.uint8)


@pytest.mark.parametrize(("index", "tolerance"), [(0, 6.0), (1, 0.0)], ids=["jpg", "png"])
def test_image_is_what_was_written(data_set: Path, index: int, tolerance: float) -> None:
    sample = load_split(data_set, "train", CAMVID_LABELS)[index]
    image, _ = draw_street(index + 1, 128, 96)
    assert (sample.image.float() - torch.from_numpy(image)).abs().mean() <= tolerance


@pytest.mark.parametrize("turned", [Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90])
def test_a_photo_is_turned_upright_like_its_mask(turned: Image.Transpose, tmp_path: Path) -> None:
    """By the EXIF orientation that a camera writes: 3 and 6 undo these."""
    sample = drawn_sample(1)
    picture, exif = Image.fromarray(sample.image.numpy()).transpose(turned), Image.Exif()
    exif[ExifTags.Base.Orientation] = {Image.Transpose.ROTATE_180: 3, Image.Transpose.ROTATE_90: 6}[turned]
    for folder in ("train", "trainannot"):
        (tmp_path / folder).mkdir()
    picture.save(tmp_path / "train" / "only.png", exif=exif)
    Image.fromarray(sample.mask.numpy()).save(tmp_path / "trainannot" / "only.png")
    (read,) = load_split(tmp_path, "train", CAMVID_LABELS)
    assert torch.equal(read.image, sample.image)
    assert torch.equal(read.mask, sample.mask)


def test_a_picture_of_16_bits_is_refused(tmp_path: Path) -> None:
    gray = Image.fromarray(np.full((4, 4), 1000, dtype=np.uint16))
    write_sample(tmp_path, gray, Image.new("L", (4, 4)))
    with pytest.raises(LabelsError, match=r"only\.png has values wider than a byte"):
        load_split(tmp_path, "train", CAMVID_LABELS)


@pytest.mark.parametrize("count", [11, 5])
def test_ignored_values_are_read_as_one(data_set: Path, count: int) -> None:
    sample = load_split(data_set, "train", labels_with(count, *range(count, 12)))[0]
    drawn = torch.from_numpy(draw_street(1, 128, 96)[1])
    drawn[-6:] = IGNORE
    expected = drawn.where(drawn < count, torch.tensor(IGNORE, dtype=torch.uint8))
    assert torch.equal(sample.mask, expected)


def test_split_without_a_list_is_its_folder_s_images(data_set: Path, tmp_path: Path) -> None:
    shutil.copytree(data_set, tmp_path, dirs_exist_ok=True)
    (tmp_path / "train.txt").unlink()
    (tmp_path / "train" / "notes.md").touch()
    samples, listed = (load_split(root, "train", CAMVID_LABELS) for root in (tmp_path, data_set))
    assert [sample.name for sample in samples] == [sample.name for sample in listed]
    assert all(torch.equal(one.mask, other.mask) for one, other in zip(samples, listed, strict=True))


def test_palette_mask_is_read_as_ids(tmp_path: Path) -> None:
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    mask = Image.fromarray(ids)
    mask.putpalette([255 - value // 3 for value in range(36)])
    write_sample(tmp_path, Image.new("RGB", (4, 3)), mask)
    [sample] = load_split(tmp_path, "train", labels_with(12))
    assert torch.equal(sample.mask, torch.from_numpy(ids))


def test_mask_of_one_bit_is_read_as_two_classes(tmp_path: Path) -> None:
    ids = np.arange(12).reshape(3, 4) % 3 == 0
    write_sample(tmp_path, Image.new("RGB", (4, 3)), Image.fromarray(ids))
    with Image.open(tmp_path / "trainannot" / "only.png") as stored:
        assert stored.mode == "1"
    [sample] = load_split(tmp_path, "train", labels_with(2))
    assert torch.equal(sample.mask, torch.from_numpy(ids.astype(np.uint8)))


def test_mask_of_sixteen_bits_is_read_as_ids(tmp_path: Path) -> None:
    ids = np.arange(12, dtype=np.uint16).reshape(3, 4)
    write_sample(tmp_path, Image.new("RGB", (4, 3)), Image.fromarray(ids))
    [sample] = load_split(tmp_path, "train", labels_with(11, 11))
    assert torch.equal(sample.mask, torch.from_numpy(np.where(ids == 11, IGNORE, ids).astype(np.uint8)))


@pytest.mark.parametrize("value", [256, 65535])
def test_value_above_a_byte_is_refused_not_cut_to_one(value: int, tmp_path: Path) -> None:
    mask = Image.fromarray(np.full((3, 4), value, dtype=np.uint16))
    write_sample(tmp_path, Image.new("RGB", (4, 3)), mask)
    with pytest.raises(LabelsError, match=rf"only\.png: value {value} is no class"):
        load_split(tmp_path, "train", labels_with(3, 255))


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", ["only.JPG", "only.Jpeg", "only.PNG"])
def test_suffix_may_be_in_capitals(name: str, listed: bool, tmp_path: Path) -> None:
    write_sample(tmp_path, Image.new("RGB", (4, 3)), Image.new("L", (4, 3)), name)
    if not listed:
        (tmp_path / "train.txt").unlink()
    assert [sample.name for sample in load_split(tmp_path, "train", CAMVID_LABELS)] == ["only"]


def test_listed_name_may_have_a_space(tmp_path: Path) -> None:
    write_sample(tmp_path, Image.new("RGB", (4, 3)), Image.new("L", (4, 3)))
    (tmp_path / "train" / "only.png").rename(tmp_path / "train" / "field 1.png")
    (tmp_path / "trainannot" / "only.png").rename(tmp_path / "trainannot" / "field 1.png")
    (tmp_path / "train.txt").write_bytes(b"field 1\r\n")
    assert [sample.name for sample in load_split(tmp_path, "train", CAMVID_LABELS)] == ["field 1"]


@pytest.mark.parametrize("listed", [True, False])
def test_split_without_an_image_is_refused(listed: bool, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "notes.md").touch()
    if listed:
        (tmp_path / "train.txt").touch()
    with pytest.raises(LabelsError, match=r"/train: no images there \(\.jpg, \.jpeg, \.png\)$"):
        load_split(tmp_path, "train", CAMVID_LABELS)


def test_grey_image_is_read_as_rgb(tmp_path: Path) -> None:
    write_sample(tmp_path, Image.new("L", (4, 3), 9), Image.new("L", (4, 3)))
    [sample] = load_split(tmp_path, "train", CAMVID_LABELS)
    assert torch.equal(sample.image, torch.full((3, 4, 3), 9, dtype=torch.uint8))


@pytest.mark.parametrize("spoilt", ["train/only.png", "trainannot/only.png"])
@pytest.mark.parametrize("kept", [20, 60, 100])
def test_a_truncated_picture_is_named(spoilt: str, kept: int, tmp_path: Path) -> None:
    noise = Image.effect_noise((40, 30), 90)
    write_sample(tmp_path, noise.convert("RGB"), noise.point(lambda value: value % 2))
    (tmp_path / spoilt).write_bytes((tmp_path / spoilt).read_bytes()[:kept])
    with pytest.raises(LabelsError, match=r"train/only\.png or its mask .*trainannot/only\.png is broken"):
        load_split(tmp_path, "train", CAMVID_LABELS)


def test_a_list_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    write_sample(tmp_path, Image.new("RGB", (4, 3)), Image.new("L", (4, 3)))
    (tmp_path / "train.txt").write_bytes("straße\n".encode("latin1"))
    with pytest.raises(LabelsError, match=r"train\.txt: 'utf-8' codec can't decode"):
        load_split(tmp_path, "train", CAMVID_LABELS)


def test_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    write_sample(tmp_path, Image.new("RGB", (4, 3)), Image.new("L", (5, 3)))
    with pytest.raises(LabelsError, match=r"train/only\.png is 3x4, but .*trainannot/only\.png 3x5;"):
        load_split(tmp_path, "train", CAMVID_LABELS)


def test_mask_of_several_channels_is_refused(tmp_path: Path) -> None:
    write_sample(tmp_path, Image.new("RGB", (4, 3)), Image.new("RGB", (4, 3)))
    with pytest.raises(LabelsError, match=r"only\.png 3x4x3; a mask has one channel"):
        load_split(tmp_path, "train", CAMVID_LABELS)


@pytest.mark.parametrize(
    ("value", "ignored", "said"),
    [
        (3, (255,), r"value 3 is no class \(0 to 2\) and not ignored \(255\)"),
        (255, (3, 250), r"value 255 is no class \(0 to 2\) and not ignored \(3, 250\)"),
        (255, (), r"value 255 is no class \(0 to 2\) and not ignored \(nothing is\)"),
    ],
)
def test_value_that_means_nothing_is_refused(value: int, ignored: tuple[int, ...], said: str, tmp_path: Path) -> None:
    mask = Image.new("L", (4, 3), 1)
    mask.putpixel((3, 2), value)
    write_sample(tmp_path, Image.new("RGB", (4, 3)), mask)
    with pytest.raises(LabelsError, match=rf"trainannot/only\.png: {said}"):
        load_split(tmp_path, "train", labels_with(3, *ignored))


def test_missing_image_is_refused_by_name(tmp_path: Path) -> None:
    write_sample(tmp_path, Image.new("RGB", (4, 3)), Image.new("L", (4, 3)))
    (tmp_path / "train.txt").write_text("only\nabsent\n")
    with pytest.raises(FileNotFoundError, match=r"train/absent with any of \.jpg, \.jpeg, \.png"):
        load_split(tmp_path, "train", CAMVID_LABELS)


def test_class_frequencies_are_shares_of_the_labelled_pixels() -> None:
    image = torch.zeros(2, 2, 3, dtype=torch.uint8)
    masks = torch.tensor([[[0, 0], [2, IGNORE]], [[0, IGNORE], [IGNORE, IGNORE]]], dtype=torch.uint8)
    frequencies = class_frequencies([Sample("", image, mask) for mask in masks], 4)
    assert frequencies.tolist() == [0.75, 0, 0.25, 0]


def test_masks_without_a_labelled_pixel_are_refused() -> None:
    blank = Sample("", torch.zeros(2, 2, 3, dtype=torch.uint8), torch.full((2, 2), IGNORE, dtype=torch.uint8))
    with pytest.raises(ValueError, match="not one labelled pixel in 3 masks"):
        class_frequencies([blank] * 3, 4)


def test_class_frequencies_of_a_split_sum_to_one(data_set: Path) -> None:
    frequencies = class_frequencies(load_split(data_set, "train", CAMVID_LABELS), 11)
    assert frequencies.shape == (11,)
    assert frequencies.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("crop", [(32, 48), (64, 64), (320, 320)])
def test_augmentation_gives_a_crop_of_fixed_size(crop: tuple[int, int]) -> None:
    sample = drawn_sample(0)
    for seed in range(5):
        image, mask = Augmentation(crop=crop)(sample, random.Random(seed))
        assert (image.shape, mask.shape) == ((*crop, 3), crop)
        assert (image.dtype, mask.dtype) == (torch.uint8, torch.int64)


def test_augmentation_leaves_the_sample_as_it_is() -> None:
    sample = coloured_sample()
    image, mask = sample.image.clone(), sample.mask.clone()
    Augmentation()(sample, random.Random(0))
    assert torch.equal(sample.image, image)
    assert torch.equal(sample.mask, mask)


def inside_one_class(mask: Tensor) -> Tensor:
    """Pixels whose neighbours to a distance of 2 are of their own class."""
    planes = mask[None, None].float()
    highest, lowest = F.max_pool2d(planes, 5, 1, 2), -F.max_pool2d(-planes, 5, 1, 2)
    return (highest == lowest)[0, 0]


@pytest.mark.parametrize("seed", range(20))
def test_image_and_mask_stay_aligned(seed: int) -> None:
    image, mask = GEOMETRY(coloured_sample(), random.Random(seed))
    clear = inside_one_class(mask) & (mask != IGNORE)
    ids, colours = mask[clear], image[clear].long()
    assert clear.float().mean() > 0.3
    assert torch.equal(colours, torch.stack([60 * ids, 200 - 60 * ids, 0 * ids], dim=1))


def test_some_crops_are_flipped_and_none_upside_down() -> None:
    masks = [GEOMETRY(coloured_sample(), random.Random(seed))[1] for seed in range(40)]
    corners = {(mask[0, 0].item(), mask[0, -1].item()) for mask in masks if IGNORE not in mask}
    assert {(0, 1), (1, 0)} <= corners
    assert all(mask[0, 31] % IGNORE <= mask[-1, 31] for mask in masks)


def test_padding_is_grey_and_ignored() -> None:
    augmentation = Augmentation(crop=(200, 200), brightness=0, contrast=0)
    for seed in range(10):
        image, mask = augmentation(coloured_sample(), random.Random(seed))
        padded = (image == PADDING).all(2)
        assert padded.any()
        assert torch.equal(padded, mask == IGNORE)


def test_brightness_and_contrast_change_the_image_alone() -> None:
    sample = drawn_sample(1)
    plain, mask = GEOMETRY(sample, random.Random(3))
    lit, same_mask = Augmentation(crop=(64, 64))(sample, random.Random(3))
    assert torch.equal(mask, same_mask)
    assert not torch.equal(plain, lit)


def test_item_follows_from_seed_and_number_alone() -> None:
    def items(order: list[int], seed: int = 5) -> dict[int, tuple[Tensor, Tensor]]:
        data = TrainingSet([drawn_sample(0), drawn_sample(1)], Augmentation((64, 64)), seed=seed, drawn_share=0.3)
        return {item: data[item] for item in order}

    forwards, backwards, others = items(list(range(8))), items(list(range(8))[::-1]), items(list(range(8)), seed=6)
    for item, (image, mask) in forwards.items():
        assert torch.equal(image, backwards[item][0])
        assert torch.equal(mask, backwards[item][1])
        assert not torch.equal(image, others[item][0])


def test_every_epoch_shows_each_sample_once_in_another_order() -> None:
    samples = plain_samples(9)
    data = TrainingSet(samples, Augmentation(crop=(24, 24), brightness=0, contrast=0), seed=1)
    epochs = [[int(data[9 * epoch + index][0].max()) for index in range(9)] for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [[10 * index for index in range(9)]] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_share_of_the_items_is_drawn() -> None:
    unlabelled = [Sample("", torch.zeros(8, 8, 3, dtype=torch.uint8), torch.full((8, 8), IGNORE, dtype=torch.uint8))]
    drawn = {
        share: sum(bool((data[item][1] != IGNORE).any()) for item in range(12))
        for share in (0.0, 0.5, 1.0)
        for data in [TrainingSet(unlabelled, Augmentation((32, 32)), seed=0, drawn_share=share)]
    }
    assert drawn[0.0] == 0
    assert 2 <= drawn[0.5] <= 10
    assert drawn[1.0] == 12


def test_steps_are_batches_of_consecutive_items() -> None:
    assert list(Steps(2, 4, 3)) == [[6, 7, 8], [9, 10, 11]]
    assert len(Steps(2, 4, 3)) == 2


@pytest.mark.parametrize("stop", [0, 2, 5])
def test_steps_go_on_where_they_stopped(stop: int) -> None:
    assert list(Steps(0, stop, 4)) + list(Steps(stop, 5, 4)) == list(Steps(0, 5, 4))
