"""Trains a segmentor: `python -m training.train --data DIR --backbone FILE --output DIR`.

Writes `last.pt` after every epoch and goes on from it when started again; at the end
`weights.safetensors` (half precision, the averaged weights), `val.json` and, if there is such a split, `test.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from models import CheckpointError
from models.checkpoint import save_segmentor
from training.data import load_split
from training.evaluate import evaluate, report
from training.labels import CAMVID_LABELS, Labels, LabelsError, load_labels, to_json
from training.network import HeadName
from training.trainer import Recipe, Start, Trainer


def train(recipe: Recipe, data: Path, labels: Labels, start: Start, output: Path) -> Trainer:
    """Train, or go on training, on a data set's `train` split, and write the averaged weights to `output`."""
    output.mkdir(parents=True, exist_ok=True)
    validation = load_split(data, "val", labels)
    trainer = Trainer(recipe, load_split(data, "train", labels), labels, start)
    if (output / "last.pt").exists():
        trainer.load(output / "last.pt")
    for epoch in range(trainer.step // trainer.steps_per_epoch, recipe.epochs):
        loss = trainer.run_epoch()
        trainer.save(output / "last.pt")
        line = f"epoch {epoch + 1}: loss {loss:.4f}"
        if (epoch + 1) % 10 == 0:
            line += f", val mIoU {evaluate(trainer.averaged, validation, trainer.preprocessing).miou:.2f}"
        tqdm.write(line)
    metadata = {
        "recurrence": "2",
        "output_stride": str(recipe.output_stride),
        "classes": to_json(labels.classes),
        "preprocessing": json.dumps(asdict(trainer.preprocessing)),
        "recipe": json.dumps(asdict(recipe)),
        "start": json.dumps(trainer.started_from),
    }
    save_segmentor(trainer.averaged, output / "weights.safetensors", metadata)
    return trainer


def main() -> int:
    defaults = Recipe()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set, with train and val")
    parser.add_argument("--labels", type=Path, help="YAML or JSON with names, palette, ignore; CamVid's if absent")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--backbone", type=Path, help="published weights (safetensors), see training/README.md")
    begin.add_argument("--initial", type=Path, help="instead: weights trained before, to keep all but their head")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--head", choices=get_args(HeadName), default=defaults.head)
    parser.add_argument("--epochs", type=positive, default=defaults.epochs)
    parser.add_argument("--batch-size", type=positive, default=defaults.batch_size)
    parser.add_argument("--crop", type=positive, default=defaults.crop, help="side of the square crops, in pixels")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    try:
        _train(parser.parse_args())
    except (CheckpointError, LabelsError, ValueError, OSError) as exc:
        print(f"train: {exc}", file=sys.stderr)
        return 1
    return 0


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value


def _train(arguments: argparse.Namespace) -> None:
    labels = load_labels(arguments.labels) if arguments.labels else CAMVID_LABELS
    recipe = Recipe(
        head=arguments.head,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        crop=arguments.crop,
        seed=arguments.seed,
        # The drawn scenes have CamVid's classes.
        drawn_share=Recipe.drawn_share if labels is CAMVID_LABELS else 0.0,
    )
    start = Start(arguments.backbone, arguments.initial)
    trainer = train(recipe, arguments.data, labels, start, arguments.output)
    for split in ("val", "test"):
        if not (arguments.data / split).exists():
            continue
        result = evaluate(trainer.averaged, load_split(arguments.data, split, labels), trainer.preprocessing)
        (arguments.output / f"{split}.json").write_text(result.to_json())
        tqdm.write(f"{split}\n{report(result, labels.classes.names)}")


if __name__ == "__main__":
    sys.exit(main())
