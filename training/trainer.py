"""The recipe and its steps."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from models.builder import output_channels
from models.transforms import normalize
from training.data import Augmentation, Sample, Steps, TrainingSet, class_frequencies
from training.labels import Labels, to_json
from training.losses import cross_entropy, lovasz_softmax, resize
from training.network import (
    AuxiliaryHead,
    HeadName,
    autocast_dtype,
    continue_segmentor,
    keep_depthwise_exact,
    new_segmentor,
    preprocessing_for,
)

SMALLEST_CROP = 4  # of which the auxiliary loss sees one pixel
LOVASZ_STEP = 4  # its sorting looks at one pixel in 4 x 4, each time others


@dataclass(frozen=True)
class Recipe:
    """What decides the outcome beside data and code; saved with it."""

    head: HeadName = "ccnet"
    epochs: int = 60
    batch_size: int = 4
    crop: int = 320
    learning_rate: float = 1.5e-3
    backbone_learning_rate: float = 2e-4
    weight_decay: float = 1e-2
    warmup_steps: int = 40
    auxiliary_weight: float = 0.4
    class_weight_constant: float = 1.4  # ENet's, where it is 1.02: the larger, the less do rare classes count
    lovasz_weight: float = 0.5
    ema_decay: float = 0.995
    clip_norm: float = 5.0
    drawn_share: float = 0.05
    output_stride: int = 16
    enlargement: float = 4 / 3  # of images for the trained network: near the middle of the scales it has seen
    seed: int = 0


@dataclass(frozen=True)
class Start:
    """The files that a training begins from.

    Attributes:
        backbone: published weights, see training.pretrained
        initial: instead, a segmentor trained before; the new one takes over its backbone and decoder
    """

    backbone: Path | None = None
    initial: Path | None = None

    def __post_init__(self) -> None:
        if self.backbone is not None and self.initial is not None:
            raise ValueError("a training begins from a backbone or from a segmentor, not from both")

    def record(self) -> dict[str, str]:
        """Role to name and sha256 of its file."""
        files = {role: path for role, path in asdict(self).items() if path is not None}
        return {role: f"{path.name}, sha256 {sha256(path.read_bytes()).hexdigest()}" for role, path in files.items()}


class Trainer:
    def __init__(self, recipe: Recipe, samples: list[Sample], labels: Labels, start: Start) -> None:
        if len(samples) < recipe.batch_size:
            raise ValueError(f"{len(samples)} training samples are fewer than one batch of {recipe.batch_size}")
        if recipe.crop < SMALLEST_CROP:
            raise ValueError(f"a crop of {recipe.crop} is smaller than {SMALLEST_CROP} pixels")
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.labels = labels
        num_classes = labels.count
        self.preprocessing = preprocessing_for(samples, recipe.enlargement, recipe.output_stride)
        if start.initial is None:
            self.segmentor = new_segmentor(recipe.head, num_classes, start.backbone, recipe.output_stride)
        else:
            self.segmentor = continue_segmentor(recipe.head, num_classes, start.initial, recipe.output_stride)
        self.started_from = start.record()
        self.segmentor.to(self.device).use_channels_last()
        self.auxiliary = AuxiliaryHead(output_channels(self.segmentor.backbone)[2], num_classes).to(self.device)
        self.averaged = copy.deepcopy(self.segmentor).eval()
        if self.device.type == "cpu":
            keep_depthwise_exact(self.segmentor)
        # ENet's class weights (arXiv 1606.02147, section 5.2).
        self.class_weights = 1 / torch.log(recipe.class_weight_constant + class_frequencies(samples, num_classes))
        self.class_weights = (self.class_weights / self.class_weights.mean()).to(self.device)
        self.optimizer = self._new_optimizer()
        augmentation = Augmentation(crop=(recipe.crop, recipe.crop))
        self.items = TrainingSet(samples, augmentation, seed=recipe.seed, drawn_share=recipe.drawn_share)
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
        return torch.optim.AdamW(groups, weight_decay=self.recipe.weight_decay, fused=True)

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
        logits = resize(self.segmentor.classify(features).logits, masks)
        loss = cross_entropy(logits, masks, self.class_weights)
        # The auxiliary head sees a coarse map; full resolution would cost time and teach it nothing.
        coarse = masks[:, 2::4, 2::4]
        auxiliary = cross_entropy(resize(self.auxiliary(features["c3"]), coarse), coarse, self.class_weights)
        top, left = torch.randint(LOVASZ_STEP, (2,)).tolist()
        sample = (..., slice(top, None, LOVASZ_STEP), slice(left, None, LOVASZ_STEP))
        lovasz = lovasz_softmax(logits[sample], masks[sample])
        return loss + self.recipe.auxiliary_weight * auxiliary + self.recipe.lovasz_weight * lovasz

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
        labels = {"classes": to_json(self.labels.classes), "ignored": ignored}
        return {**asdict(self.recipe), **labels, "start": self.started_from}

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
