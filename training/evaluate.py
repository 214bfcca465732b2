"""mIoU of a checkpoint on a split: `python -m training.evaluate WEIGHTS --data DIR --split test`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from models import Segmentor, load_segmentor
from models.classes import CAMVID
from models.ops.upsample import upsample_argmax
from models.registry import CAMVID_PREPROCESSING
from models.transforms import normalize, resize
from training.data import Sample, load_split
from training.metrics import Scores, confusion_matrix, scores


@torch.inference_mode()
def evaluate(segmentor: Segmentor, samples: Sequence[Sample], device: torch.device) -> Scores:
    """Single scale, one image at a time, at the images' own size: what the service computes."""
    segmentor.eval()
    confusion = torch.zeros(segmentor.num_classes, segmentor.num_classes, dtype=torch.int64)
    for sample in tqdm(samples, desc="evaluate", leave=False):
        ids = predict(segmentor, sample.image, device)
        confusion += confusion_matrix(sample.mask, ids, segmentor.num_classes)
    return scores(confusion)


def predict(segmentor: Segmentor, image: Tensor, device: torch.device) -> Tensor:
    """Class ids [H, W] of an RGB image [H, W, 3]."""
    original = image.shape[0], image.shape[1]
    input_size = CAMVID_PREPROCESSING.input_size(original)
    batch = normalize(resize(image, input_size).unsqueeze(0).to(device), CAMVID_PREPROCESSING)
    logits = segmentor(batch).logits[0]
    ids, _ = upsample_argmax(logits, input_size, original, align_corners=segmentor.align_corners)
    return ids.cpu()


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
    print(report(evaluate(segmentor, samples, device), CAMVID.names))


if __name__ == "__main__":
    main()
