"""Trains a segmentor: `python -m training.train --data DIR --backbone FILE --output DIR`.

Writes `last.pt` after every epoch and goes on from it when started again; at the end
`weights.safetensors` (half precision, the averaged weights), `val.json` and, if there is such a split, `test.json`.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from models.checkpoint import save_segmentor
from models.transforms import normalize
from training.data import IGNORE, Augmentation, Sample, Steps, TrainingSet, class_frequencies, load_split
from training.evaluate import evaluate, report
from training.labels import CAMVID_LABELS, Labels, LabelsError, load_labels, to_json
from training.network import AuxiliaryHead, HeadName, autocast_dtype, new_segmentor, preprocessing_for


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome beside the data; saved with it."""

    head: HeadName = "ccnet"
    epochs: int = 60
    batch_size: int = 4
    crop: int = 320
    learning_rate: float = 1.5e-3
    backbone_learning_rate: float = 2e-4
    weight_decay: float = 1e-2
    warmup_steps: int = 40
    auxiliary_weight: float = 0.4
    ema_decay: float = 0.995
    clip_norm: float = 5.0
    drawn_share: float = 0.05
    output_stride: int = 16
    seed: int = 0


class Trainer:
    def __init__(self, recipe: Recipe, samples: list[Sample], labels: Labels, backbone: Path | None) -> None:
        if len(samples) < recipe.batch_size:
            raise ValueError(f"{len(samples)} training samples are fewer than one batch of {recipe.batch_size}")
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.labels = labels
        num_classes = labels.count
        self.preprocessing = preprocessing_for(samples)
        self.segmentor = new_segmentor(recipe.head, num_classes, backbone, recipe.output_stride)
        self.segmentor.to(self.device).use_channels_last()
        self.auxiliary = AuxiliaryHead(96, num_classes).to(self.device)
        self.averaged = copy.deepcopy(self.segmentor).eval()
        # ENet's class weights with a milder constant: thin classes count more, none dominates.
        self.class_weights = 1 / torch.log(1.10 + class_frequencies(samples, num_classes))
        self.class_weights = (self.class_weights / self.class_weights.mean()).to(self.device)
        self.optimizer = self._new_optimizer()
        self.items = TrainingSet(
            samples,
            Augmentation(crop=(recipe.crop, recipe.crop)),
            seed=recipe.seed,
            drawn_share=recipe.drawn_share,
        )
        self.steps_per_epoch = len(samples) // recipe.batch_size
        self.step = 0

    def _new_optimizer(self) -> torch.optim.Optimizer:
        backbone = list(self.segmentor.backbone.parameters())
        ours = {id(parameter) for parameter in backbone}
        rest = [parameter for parameter in self._parameters() if id(parameter) not in ours]
        groups = [
            {"params": backbone, "peak": self.recipe.backbone_learning_rate},
            {"params": rest, "peak": self.recipe.learning_rate},
        ]
        return torch.optim.AdamW(groups, weight_decay=self.recipe.weight_decay)

    def _parameters(self) -> list[nn.Parameter]:
        return [*self.segmentor.parameters(), *self.auxiliary.parameters()]

    def run_epoch(self) -> float:
        """One pass over the data; returns the mean loss."""
        self.segmentor.train()
        last = (self.step // self.steps_per_epoch + 1) * self.steps_per_epoch
        workers = 8 if self.device.type == "cuda" else 0
        loader = DataLoader(
            self.items, batch_sampler=Steps(self.step, last, self.recipe.batch_size), num_workers=workers
        )
        progress = tqdm(loader, desc=f"epoch {last // self.steps_per_epoch}/{self.recipe.epochs}", leave=False)
        total = 0.0
        for images, masks in progress:
            loss = self._run_step(images.to(self.device), masks.to(self.device))
            total += loss
            progress.set_postfix(loss=f"{loss:.3f}")
        return total / len(loader)

    def _run_step(self, images: Tensor, masks: Tensor) -> float:
        self._set_learning_rate()
        # Dropout then depends on the step alone, so a run that resumes repeats one that did not stop.
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)
        dtype = autocast_dtype(self.device)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            loss = self._loss(normalize(images, self.preprocessing), masks)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.step += 1
        self._average()
        return loss.item()

    def _loss(self, images: Tensor, masks: Tensor) -> Tensor:
        features = self.segmentor.backbone(images)
        logits = self.segmentor.classify(features).logits
        auxiliary = self.auxiliary(features["c3"])
        return self._cross_entropy(logits, masks) + self.recipe.auxiliary_weight * self._cross_entropy(auxiliary, masks)

    def _cross_entropy(self, logits: Tensor, masks: Tensor) -> Tensor:
        resized = F.interpolate(logits.float(), masks.shape[1:], mode="bilinear", align_corners=False)
        total = F.cross_entropy(resized, masks, self.class_weights, ignore_index=IGNORE, reduction="sum")
        # A crop without a single labelled pixel has no loss; a mean over none would be NaN for good.
        return total / self.class_weights[masks[masks != IGNORE]].sum().clamp(min=1)

    def _set_learning_rate(self) -> None:
        steps = self.recipe.epochs * self.steps_per_epoch
        factor = min(1.0, (self.step + 1) / self.recipe.warmup_steps) * (1 - self.step / steps) ** 0.9
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    @torch.no_grad()
    def _average(self) -> None:
        # Early on the average follows closely, so that the random start is forgotten.
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        for kept, new in zip(_tensors(self.averaged), _tensors(self.segmentor), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - decay)

    def _description(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one that began."""
        ignored = sorted(self.labels.ignored)
        return {**asdict(self.recipe), "classes": to_json(self.labels.classes), "ignored": ignored}

    def save(self, path: Path) -> None:
        state = {
            "segmentor": self.segmentor.state_dict(),
            "auxiliary": self.auxiliary.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "run": self._description(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """
        Raises:
            ValueError: not a file of ours, or the run was started with another recipe or other labels
        """
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            run = state["run"]
        except Exception as exc:
            raise ValueError(f"{path} is damaged, or not from this program ({type(exc).__name__})") from exc
        if run != self._description():
            raise ValueError(f"{path} belongs to the run {run}, not {self._description()}")
        self.segmentor.load_state_dict(state["segmentor"])
        self.auxiliary.load_state_dict(state["auxiliary"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def _tensors(module: nn.Module) -> list[Tensor]:
    """Each parameter and buffer once, even one that two modules share."""
    return [*module.parameters(), *module.buffers()]


def train(recipe: Recipe, data: Path, labels: Labels, backbone: Path | None, output: Path) -> Trainer:
    """Train, or go on training, on a data set's `train` split, and write the averaged weights to `output`."""
    output.mkdir(parents=True, exist_ok=True)
    validation = load_split(data, "val", labels)
    trainer = Trainer(recipe, load_split(data, "train", labels), labels, backbone)
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
    }
    save_segmentor(trainer.averaged, output / "weights.safetensors", metadata)
    return trainer


def main() -> int:
    defaults = Recipe()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set, with train and val")
    parser.add_argument("--labels", type=Path, help="YAML or JSON with names, palette, ignore; CamVid's if absent")
    parser.add_argument("--backbone", type=Path, help="torchvision-named MobileNetV2 weights (safetensors)")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--head", choices=get_args(HeadName), default=defaults.head)
    parser.add_argument("--epochs", type=positive, default=defaults.epochs)
    parser.add_argument("--batch-size", type=positive, default=defaults.batch_size)
    parser.add_argument("--crop", type=positive, default=defaults.crop, help="side of the square crops, in pixels")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    try:
        _train(parser.parse_args())
    except (LabelsError, ValueError, OSError) as exc:
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
    trainer = train(recipe, arguments.data, labels, arguments.backbone, arguments.output)
    for split in ("val", "test"):
        if not (arguments.data / split).exists():
            continue
        result = evaluate(trainer.averaged, load_split(arguments.data, split, labels), trainer.preprocessing)
        (arguments.output / f"{split}.json").write_text(result.to_json())
        tqdm.write(f"{split}\n{report(result, labels.classes.names)}")


if __name__ == "__main__":
    sys.exit(main())
