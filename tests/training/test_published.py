"""The published figure, computed again from the bundled weights on the real test split."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import ModelSpec, create_model, list_models
from training.data import load_split
from training.evaluate import evaluate
from training.labels import CAMVID_LABELS

CAMVID = Path(__file__).parents[3] / "shared/data/camvid"


@pytest.mark.timeout(900)  # half a minute on an idle core
@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not in the repository, nor beside it")
@pytest.mark.parametrize("spec", list_models(), ids=lambda spec: spec.name)
def test_the_published_miou_is_what_the_weights_reach(spec: ModelSpec) -> None:
    samples = load_split(CAMVID, "test", CAMVID_LABELS)
    assert len(samples) == 233
    segmentor = create_model(spec.name)
    segmentor.use_channels_last()
    result = evaluate(segmentor, samples, spec.preprocessing)
    assert result.miou == pytest.approx(spec.miou, abs=0.1)
