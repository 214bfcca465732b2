"""The heads that no bundled model has, from an image file to their attention, through the real worker."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from app.api.attention import Question, attention_map
from app.api.attention_views import describe, to_reply
from app.api.derived import Derived
from app.api.record import Record
from app.engine.device import Segmentation
from app.engine.memory import outlive
from app.engine.prepare import prepare
from app.engine.worker import Worker
from app.imaging import decode
from models import Segmentor, list_models
from models.backbones.mobilenet import MobileNetV2
from models.heads.ann import ANNHead
from models.heads.fcn import Head
from models.heads.non_local import NonLocalHead

SAMPLE = Path(__file__).parents[2] / "app/web/sample.jpg"
SPEC = list_models()[0]


def segmented(head: Head, monkeypatch: pytest.MonkeyPatch) -> Record:
    torch.manual_seed(0)
    segmentor = Segmentor(MobileNetV2(width=0.25), head).eval()
    for module in segmentor.decode_head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight)  # attention that isn't even
    monkeypatch.setattr("app.engine.worker.load_model", {SPEC: segmentor}.__getitem__)
    worker = Worker("cpu", 0)
    worker.load(SPEC, SPEC.name)
    (image,) = prepare(decode(SAMPLE.read_bytes(), 1_000_000), SPEC, SPEC.inference, True)
    (result,) = worker.run(SPEC.name, worker.stage([image])).outcomes
    assert isinstance(result, Segmentation)
    return Record("id", SPEC, b"", outlive(result))


@pytest.mark.parametrize(
    ("head", "blocks"),
    [(ANNHead((24, 80), 32, 11), ["afnb", "apnb"]), (NonLocalHead(80, 32, 11), ["nl"])],
    ids=["ann", "nonlocal"],
)
def test_each_block_is_timed_and_its_attention_sums_to_one(
    head: Head, blocks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = segmented(head, monkeypatch)
    assert [info.block for info in describe(record).blocks] == blocks
    assert set(blocks) < record.segmentation.timings.modules.keys()
    for block in blocks:
        reply = to_reply(record, attention_map(record, Question((100, 200), block), Derived(1 << 24)), 5, True)
        assert reply.weights is not None
        assert reply.sum == pytest.approx(1, abs=1e-9)
        assert (len(reply.weights), len(reply.weights[0])) == (30, 40)
        if reply.anchors is not None:
            assert sum(len(row) for grid in reply.anchors.values() for row in grid) == 110
            assert sum((reply.levels or {}).values()) == pytest.approx(1, abs=1e-9)
