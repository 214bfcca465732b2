"""The published figure, computed again from the bundled weights on the real test split."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models import ModelSpec, create_model, list_models
from training.data import load_split
from training.evaluate import evaluate
from training.labels import CAMVID_LABELS

CAMVID = Path(__file__).parents[3] / "shared/data/camvid"


@pytest.fixture
def all_cores() -> Iterator[None]:
    """Minutes of work: worth more than the one thread that tests get."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("all_cores")
@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not in the repository, nor beside it")
@pytest.mark.parametrize("spec", list_models(), ids=lambda spec: spec.name)
def test_the_published_miou_is_what_the_weights_reach(spec: ModelSpec) -> None:
    samples = load_split(CAMVID, "test", CAMVID_LABELS)
    assert len(samples) == 233
    segmentor = create_model(spec.name)
    segmentor.use_channels_last()
    result = evaluate(segmentor, samples, spec.preprocessing)
    assert result.miou == pytest.approx(spec.miou, abs=0.1)
