"""A small data set of drawn scenes in the layout that training reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from training.scenes import draw_street

WIDTH, HEIGHT = 128, 96
SEEDS = {"train": (1, 2, 3, 4), "val": (5,), "test": (6, 7)}
# CamVid's own id of unlabelled pixels; the scenes leave none, so a strip is added.
VOID, VOID_ROWS = 11, 6


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` has four scenes, `val` one, `test` two; the last rows of every mask are unlabelled."""
    root = tmp_path_factory.mktemp("drawn")
    for split, seeds in SEEDS.items():
        (root / split).mkdir()
        (root / f"{split}annot").mkdir()
        (root / f"{split}.txt").write_text("".join(f"scene{seed}\n" for seed in seeds))
        for seed in seeds:
            image, mask = draw_street(seed, WIDTH, HEIGHT)
            mask[-VOID_ROWS:] = VOID
            suffix = "jpg" if seed % 2 else "png"
            Image.fromarray(image).save(root / split / f"scene{seed}.{suffix}")
            Image.fromarray(mask).save(root / f"{split}annot" / f"scene{seed}.png")
    return root
