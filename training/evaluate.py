"""mIoU of a checkpoint on a split: `python -m training.evaluate WEIGHTS --data DIR --split test`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from models import Card, CheckpointError, ModelSpec, Segmentor, load_model, recognise
from models.card import NOTHING_SAID
from models.data_sets import of_class_count
from models.inference import segment_image
from models.transforms import Preprocessing
from training.confusion import Scores, confusion_matrix, draw, scores
from training.data import Sample, load_split
from training.labels import CAMVID_LABELS, Labels, LabelsError, load_labels


def count_confusion(predict: Callable[[Tensor], Tensor], samples: Sequence[Sample], num_classes: int) -> Tensor:
    """[K, K] over a split; `predict` maps an image [H, W, 3] to class ids [H, W]."""
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for sample in tqdm(samples, desc="evaluate", leave=False):
        confusion += confusion_matrix(sample.mask, predict(sample.image), num_classes)
    return confusion


def evaluate(segmentor: Segmentor, samples: Sequence[Sample], preprocessing: Preprocessing) -> Scores:
    """Single scale, one image at a time, at the images' own size: what the service computes."""
    segmentor.eval()
    return scores(
        count_confusion(lambda image: segment_image(segmentor, image, preprocessing)[0], samples, segmentor.num_classes)
    )


def report(result: Scores, names: Sequence[str]) -> str:
    rows = [f"{name:<20}{iou:6.2f}" for name, iou in zip(names, result.iou, strict=True)]
    return "\n".join([*rows, f"{'mIoU':<20}{result.miou:6.2f}", f"{'accuracy':<20}{result.accuracy:6.2f}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--split", default="test")
    parser.add_argument("--labels", type=Path, help="YAML or JSON with names, palette, ignore; CamVid's if absent")
    parser.add_argument(
        "--scales",
        type=_factor,
        nargs="+",
        help="average over these factors on the input size; the file's if absent",
    )
    parser.add_argument("--flip", action="store_true", help="average over mirror images too")
    parser.add_argument("--confusion", type=Path, help="PNG to draw the confusion matrix to")
    try:
        _evaluate(parser.parse_args())
    except (CheckpointError, LabelsError, OSError) as exc:
        print(f"evaluate: {exc}", file=sys.stderr)
        return 1
    return 0


def _factor(text: str) -> float:
    value = float(text)
    if not 0 < value < 10:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 10")
    return value


def _evaluate(arguments: argparse.Namespace) -> None:
    if arguments.confusion and (
        arguments.confusion.suffix.lower() != ".png" or not arguments.confusion.parent.is_dir()
    ):
        raise LabelsError(f"--confusion {arguments.confusion}: needs the name of a PNG in a folder that exists")
    labels = load_labels(arguments.labels) if arguments.labels else CAMVID_LABELS
    spec = _recognise(arguments.weights, labels)
    segmentor = load_model(spec).to("cuda" if torch.cuda.is_available() else "cpu")
    if segmentor.prefers_channels_last:
        segmentor.use_channels_last()
    samples = load_split(arguments.data, arguments.split, labels)
    inference = spec.inference
    if arguments.scales:
        inference = replace(inference, scales=tuple(arguments.scales))
    if arguments.flip:
        inference = replace(inference, flip=True)
    confusion = count_confusion(
        lambda image: segment_image(segmentor, image, spec.preprocessing, inference)[0], samples, labels.count
    )
    print(report(scores(confusion), labels.classes.names))
    if arguments.confusion:
        draw(confusion, labels.classes.names).save(arguments.confusion)


def _recognise(weights: Path, labels: Labels) -> ModelSpec:
    """As it is served, whoever trained it. The labels say what its classes are where nothing else would."""
    said = NOTHING_SAID if of_class_count(labels.count) else Card(classes=labels.classes.names)
    spec = recognise(weights, said)
    if len(spec.classes.names) != labels.count:
        raise LabelsError(f"{weights} has {len(spec.classes.names)} classes, the labels {labels.count}")
    return spec


if __name__ == "__main__":
    sys.exit(main())
