"""A folder of images and index masks, and the augmentation that training sees.

Layout (that of SegNet's CamVid): `<root>/<split>/<name>.jpg` or `.png` are the images, `<root>/<split>annot/<name>.png`
their masks, whose pixel values are class ids. `<root>/<split>.txt` lists the names, if not all are meant.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from training.labels import Labels, LabelsError
from training.scenes import draw_street

IGNORE = 255
SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Sample:
    name: str
    image: Tensor  # [H, W, 3] uint8 RGB
    mask: Tensor  # [H, W] uint8, class ids, IGNORE where unlabelled


def load_split(root: Path, split: str, labels: Labels) -> list[Sample]:
    """Read a whole split into memory, ignored mask values as IGNORE.

    Raises:
        FileNotFoundError: an image or mask is missing
        LabelsError: there are no images, an image and its mask differ in size, or the mask has a value that is
            neither a class nor ignored
    """
    listed = root / f"{split}.txt"
    images = {path.stem: path for path in sorted((root / split).iterdir()) if path.suffix.lower() in SUFFIXES}
    names = _names(listed) if listed.exists() else list(images)
    if not names:
        raise LabelsError(f"{root / split}: no images there ({', '.join(SUFFIXES)})")
    for name in names:
        if name not in images:
            raise FileNotFoundError(f"no image {root / split / name} with any of {', '.join(SUFFIXES)}")
    return [_load_sample(images[name], root / f"{split}annot" / f"{name}.png", labels) for name in names]


def _names(listed: Path) -> list[str]:
    try:
        return [line.strip() for line in listed.read_text().splitlines() if line.strip()]
    except UnicodeDecodeError as exc:
        raise LabelsError(f"{listed}: {exc}") from exc


def _load_sample(path: Path, mask_path: Path, labels: Labels) -> Sample:
    try:
        with Image.open(path) as picture, Image.open(mask_path) as drawn:
            image = torch.from_numpy(_pixels(path, picture))
            # Masks come in 1, 8 and 16 bits; a common type makes their values comparable.
            mask = torch.from_numpy(np.array(drawn).astype(np.int64))
    except FileNotFoundError:
        raise
    # Pillow raises many kinds of errors, and those of truncated files don't name the file.
    except (OSError, SyntaxError, ValueError, TypeError, struct.error) as exc:
        raise LabelsError(f"{path} or its mask {mask_path} is broken: {exc}") from exc
    if mask.shape != image.shape[:2]:
        raise LabelsError(
            f"{path} is {_by(image.shape[:2])}, but {mask_path} {_by(mask.shape)}; a mask has one channel, and its "
            "image's size"
        )
    return Sample(path.stem, image, _with_ignored(mask, mask_path, labels))


def _pixels(path: Path, picture: Image.Image) -> NDArray[np.uint8]:
    """[H, W, 3], upright by the picture's EXIF orientation, as masks are drawn and the service sees it."""
    if picture.mode.startswith(("I", "F")):
        raise LabelsError(f"{path} has values wider than a byte, of which all beyond 255 would be white")
    return np.array(ImageOps.exif_transpose(picture).convert("RGB"))


def _with_ignored(mask: Tensor, path: Path, labels: Labels) -> Tensor:
    values = set(torch.unique(mask).tolist())
    wrong = values - labels.ignored - set(range(labels.count))
    if wrong:
        raise LabelsError(
            f"{path}: value {min(wrong)} is no class (0 to {labels.count - 1}) and not ignored "
            f"({', '.join(map(str, sorted(labels.ignored))) or 'nothing is'})"
        )
    ignored = torch.isin(mask, torch.tensor(sorted(labels.ignored), dtype=torch.int64))
    return torch.where(ignored, IGNORE, mask).to(torch.uint8)


def _by(shape: torch.Size) -> str:
    return "x".join(map(str, shape))


def class_frequencies(samples: list[Sample], num_classes: int) -> Tensor:
    """Share of each class in the labelled pixels: [K], sum 1.

    Raises:
        ValueError: there are none
    """
    counts = torch.stack([torch.bincount(sample.mask.flatten(), minlength=256) for sample in samples]).sum(0)
    if not counts[:num_classes].any():
        raise ValueError(f"not one labelled pixel in {len(samples)} masks")
    return counts[:num_classes] / counts[:num_classes].sum()


@dataclass(frozen=True)
class Augmentation:
    crop: tuple[int, int] = (320, 320)  # height, width
    scale: tuple[float, float] = (0.75, 1.8)
    brightness: float = 0.3
    contrast: float = 0.3

    def __call__(self, sample: Sample, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Random scale, crop, flip, brightness and contrast: image [h, w, 3] uint8, mask [h, w] int64."""
        image, mask = self._scaled(sample, rng.uniform(*self.scale))
        image, mask = self._cropped(image, mask, rng)
        if rng.random() < 0.5:
            image, mask = image.flip(1), mask.flip(1)
        gain = 1 + rng.uniform(-self.contrast, self.contrast)
        shift = 255 * rng.uniform(-self.brightness, self.brightness) / 2
        mean = image.float().mean()
        return ((image.float() - mean) * gain + mean + shift).clamp(0, 255).to(torch.uint8), mask.long()

    @staticmethod
    def _scaled(sample: Sample, factor: float) -> tuple[Tensor, Tensor]:
        size = [max(1, round(side * factor)) for side in sample.mask.shape]
        planes = sample.image.permute(2, 0, 1).unsqueeze(0)
        image = F.interpolate(planes, size, mode="bilinear", antialias=True).squeeze(0).permute(1, 2, 0)
        mask = F.interpolate(sample.mask[None, None].float(), size, mode="nearest-exact")[0, 0].to(torch.uint8)
        return image, mask

    def _cropped(self, image: Tensor, mask: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        height, width = self.crop
        bottom, right = max(0, height - mask.shape[0]), max(0, width - mask.shape[1])
        image = F.pad(image, (0, 0, 0, right, 0, bottom), value=128)
        mask = F.pad(mask, (0, right, 0, bottom), value=IGNORE)
        top, left = rng.randint(0, mask.shape[0] - height), rng.randint(0, mask.shape[1] - width)
        window = slice(top, top + height), slice(left, left + width)
        return image[window], mask[window]


class TrainingSet(Dataset[tuple[Tensor, Tensor]]):
    """Item `i` is always the same augmented crop: its randomness comes from (seed, i) alone.

    So a run that resumes at step s, with any number of workers, sees what it would have seen.
    Items count on through the epochs; a share of them are drawn street scenes.
    """

    def __init__(
        self, samples: list[Sample], augmentation: Augmentation, *, seed: int, drawn_share: float = 0.0
    ) -> None:
        self.samples = samples
        self.augmentation = augmentation
        self.seed = seed
        self.drawn_share = drawn_share

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        rng = random.Random(f"{self.seed}/{item}")
        if rng.random() < self.drawn_share:
            image, mask = draw_street(rng.getrandbits(32))
            sample = Sample("drawn", torch.from_numpy(image), torch.from_numpy(mask))
        else:
            sample = self.samples[self._shuffled(item)]
        return self.augmentation(sample, rng)

    def _shuffled(self, item: int) -> int:
        epoch, index = divmod(item, len(self.samples))
        order = list(range(len(self.samples)))
        random.Random(f"{self.seed}/epoch {epoch}").shuffle(order)
        return order[index]


class Steps(Sampler[list[int]]):
    """Batches of consecutive items, from a first step to a last."""

    def __init__(self, first: int, last: int, batch_size: int) -> None:
        self.first, self.last, self.batch_size = first, last, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.last):
            yield list(range(step * self.batch_size, (step + 1) * self.batch_size))

    def __len__(self) -> int:
        return self.last - self.first
