"""Trains a segmentor: `python -m training.train --data DIR --backbone FILE --output DIR`.

Writes `last.pt` after every epoch and goes on from it when started again; at the end
`weights.safetensors` (half precision, the averaged weights), `val.json` and `test.json`.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from models import Segmentor
from models.checkpoint import save_segmentor
from models.classes import CAMVID
from models.registry import CAMVID_PREPROCESSING
from models.transforms import normalize
from training.data import IGNORE, Augmentation, Sample, Steps, TrainingSet, class_frequencies, load_split
from training.evaluate import evaluate, report
from training.network import AuxiliaryHead, HeadName, autocast_dtype, new_segmentor


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
    def __init__(self, recipe: Recipe, samples: list[Sample], backbone: Path | None) -> None:
        if len(samples) < recipe.batch_size:
            raise ValueError(f"{len(samples)} training samples are fewer than one batch of {recipe.batch_size}")
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        num_classes = len(CAMVID.names)
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
        self.segmentor.backbone.eval()
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
            loss = self._loss(normalize(images, CAMVID_PREPROCESSING), masks)
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

    def save(self, path: Path) -> None:
        state = {
            "segmentor": self.segmentor.state_dict(),
            "auxiliary": self.auxiliary.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "recipe": asdict(self.recipe),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """
        Raises:
            ValueError: the run was started with another recipe
        """
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise ValueError(f"{path} was written with the recipe {state['recipe']}, not {asdict(self.recipe)}")
        self.segmentor.load_state_dict(state["segmentor"])
        self.auxiliary.load_state_dict(state["auxiliary"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def _tensors(module: nn.Module) -> list[Tensor]:
    """Each parameter and buffer once, even one that two modules share."""
    return [*module.parameters(), *module.buffers()]


def train(recipe: Recipe, data: Path, backbone: Path | None, output: Path) -> Segmentor:
    """Train, or go on training, and write the results to `output`; returns the averaged segmentor."""
    num_classes = len(CAMVID.names)
    output.mkdir(parents=True, exist_ok=True)
    validation = load_split(data, "val", num_classes)
    trainer = Trainer(recipe, load_split(data, "train", num_classes), backbone)
    if (output / "last.pt").exists():
        trainer.load(output / "last.pt")
    for epoch in range(trainer.step // trainer.steps_per_epoch, recipe.epochs):
        loss = trainer.run_epoch()
        trainer.save(output / "last.pt")
        line = f"epoch {epoch + 1}: loss {loss:.4f}"
        if (epoch + 1) % 10 == 0:
            line += f", val mIoU {evaluate(trainer.averaged, validation).miou:.2f}"
        tqdm.write(line)
    metadata = {"recurrence": "2", "output_stride": str(recipe.output_stride), "recipe": json.dumps(asdict(recipe))}
    save_segmentor(trainer.averaged, output / "weights.safetensors", metadata)
    return trainer.averaged


def main() -> None:
    defaults = Recipe()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--backbone", type=Path, help="torchvision-named MobileNetV2 weights (safetensors)")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--head", choices=get_args(HeadName), default=defaults.head)
    parser.add_argument("--epochs", type=int, default=defaults.epochs)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    arguments = parser.parse_args()
    recipe = Recipe(head=arguments.head, epochs=arguments.epochs, batch_size=arguments.batch_size, seed=arguments.seed)
    segmentor = train(recipe, arguments.data, arguments.backbone, arguments.output)
    for split in ("val", "test"):
        result = evaluate(segmentor, load_split(arguments.data, split, segmentor.num_classes))
        (arguments.output / f"{split}.json").write_text(result.to_json())
        tqdm.write(f"{split}\n{report(result, CAMVID.names)}")


if __name__ == "__main__":
    main()
