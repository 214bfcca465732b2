"""The papers' settings, counted exactly, and the picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.attention import (
    ANN,
    CCNET,
    GRIDS,
    GROWING,
    PLAIN,
    PUBLISHED,
    Sizes,
    costs,
    draw,
    flops_of,
    parts_of,
    show,
)
from benchmarks.heads import Cost, peak_memory
from models.ops import attention

CPU = torch.device("cpu")
TINY = Sizes(32, 4, 16)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("name", PUBLISHED["97x97"])
def test_flops_at_ccnet_s_setting_are_the_published_ones(name: str) -> None:
    published = PUBLISHED["97x97"][name]["gflops"]
    assert flops_of(CCNET, GRIDS["97x97"])[name] / 1e9 == pytest.approx(published, abs=0.5 if published > 100 else 0.05)


@pytest.mark.parametrize(
    ("setting", "plain", "apnb"), [("96x96", 58.0, 15.0), ("128x128", 163.2, 26.7), ("128x256", 601.3, 53.4)]
)
def test_flops_at_ann_s_settings_follow_from_its_sizes(setting: str, plain: float, apnb: float) -> None:
    """Multiply-adds: three projections and two products with 256 channels; pooled, the products have 110 keys."""
    flops = flops_of(ANN, GRIDS[setting])
    assert flops[PLAIN] / 2e9 == pytest.approx(plain, abs=0.05)
    assert flops["apnb"] / 2e9 == pytest.approx(apnb, abs=0.05)


def test_passes_cost_in_proportion_and_need_no_parameters_of_their_own() -> None:
    flops, parts = flops_of(TINY, (9, 11)), parts_of(TINY, (9, 11), CPU)
    one, two, three = (flops[f"rcca {recurrence}"] for recurrence in (1, 2, 3))
    assert (two, three) == (2 * one, 3 * one)
    assert parts["rcca 1"].parameters == parts["rcca 3"].parameters == 2 * (32 * 4 + 4) + 32 * 32 + 32 + 1


def test_only_the_plain_block_keeps_its_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "DENSE_ELEMENTS", 1 << 16)  # in proportion to so small a map
    parts = parts_of(TINY, (24, 32), CPU)
    attention_map = 4 * (24 * 32) ** 2
    for name, part in parts.items():
        assert (peak_memory(part.run, CPU) > attention_map) == (name == PLAIN)


def test_both_non_local_blocks_are_one_function() -> None:
    parts = parts_of(TINY, (5, 7), CPU)
    kept, fused = parts[PLAIN].run(), parts["nonlocal"].run()
    torch.testing.assert_close(kept, fused)


def test_a_table_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = costs(TINY, (8, 8), 1, CPU, *GROWING)
    assert list(table) == list(GROWING)
    show("97x97", table)
    assert "(16.5)" in capsys.readouterr().out
    other = {name: Cost(1, 10, 0.5, 1000) for name in GROWING}
    growth = {
        grid: {name: asdict(cost) for name, cost in costs_.items()} for grid, costs_ in (("8x8", table), ("9x9", other))
    }
    draw(growth, tmp_path / "growth.png")
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.size == (1000, 360)
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20
