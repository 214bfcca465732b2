"""mIoU of a checkpoint on a split: `python -m training.evaluate WEIGHTS --data DIR --split test`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from models import Segmentor, load_segmentor
from models.classes import CAMVID
from models.inference import segment_image
from models.registry import CAMVID_PREPROCESSING
from training.data import Sample, load_split
from training.metrics import Scores, confusion_matrix, scores


def evaluate(segmentor: Segmentor, samples: Sequence[Sample]) -> Scores:
    """Single scale, one image at a time, at the images' own size: what the service computes."""
    segmentor.eval()
    confusion = torch.zeros(segmentor.num_classes, segmentor.num_classes, dtype=torch.int64)
    for sample in tqdm(samples, desc="evaluate", leave=False):
        ids, _ = segment_image(segmentor, sample.image, CAMVID_PREPROCESSING)
        confusion += confusion_matrix(sample.mask, ids, segmentor.num_classes)
    return scores(confusion)


def report(result: Scores, names: Sequence[str]) -> str:
    rows = [f"{name:<14}{iou:6.2f}" for name, iou in zip(names, result.iou, strict=True)]
    return "\n".join([*rows, f"{'mIoU':<14}{result.miou:6.2f}", f"{'accuracy':<14}{result.accuracy:6.2f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--split", default="test")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    segmentor = load_segmentor(arguments.weights).to(device)
    samples = load_split(arguments.data, arguments.split, segmentor.num_classes)
    print(report(evaluate(segmentor, samples), CAMVID.names))


if __name__ == "__main__":
    main()
