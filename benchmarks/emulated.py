"""Our server on an emulated accelerator, so that the queue is measured and nothing else: `-m benchmarks.emulated`.

A pass of n images takes a + b * n seconds and no CPU time. The peers' passes are emulated by the same function.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from app.engine.device import Outcome, Ran, Segmentation
from app.engine.staging import Image, Staged
from app.main import create_app
from app.server import Server
from app.settings import load_settings
from app.timings import Timings
from benchmarks.peers.pipeline import occupy_device
from benchmarks.peers.tuning import Tuning
from models import ModelSpec, get_spec
from models.precision import Precision
from models.transforms import Preprocessing

# An input of 16x8 at most.
TINY = Preprocessing(scale=(16, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Emulated:
    """Stands in for the worker: a device that runs one batch at a time and finds class 0 everywhere."""

    slots = 1
    best_batch_size = 8
    stages_ahead = False

    def __init__(self, pass_cost: tuple[float, float]) -> None:
        self.device = torch.device("cpu")
        self._cost = pass_cost

    def enter(self) -> None:
        pass

    def load(self, spec: ModelSpec, key: str) -> Precision:
        return "float32"

    def warm_up(self, key: str) -> None:
        pass

    def unload(self, key: str) -> None:
        pass

    def stage(self, images: Sequence[Image]) -> Staged:
        return Staged(tuple(images), torch.stack([image.pixels for image in images]))

    def run(self, key: str, staged: Staged) -> Ran:
        timings = Timings()
        with timings.stage("forward"):
            if any(self._cost):  # as for the peers
                occupy_device(self._cost, len(staged.images))
        outcomes: list[Outcome] = [
            Segmentation(np.zeros(image.original, np.uint8), np.full(image.original, 255, np.uint8), (), timings)
            for image in staged.images
        ]
        return Ran(outcomes)

    def memory(self) -> dict[str, int]:
        return {}


def main() -> None:
    settings = load_settings()
    logging.basicConfig(level=settings.log_level.upper())
    spec = replace(get_spec(settings.default_model), preprocessing=TINY)
    app = create_app(settings, worker=Emulated(Tuning.of().pass_cost), specs=[spec])
    Server(app, settings).run_until_signalled()


if __name__ == "__main__":
    main()
