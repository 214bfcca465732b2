"""Every architecture and layout against logits kept in this repository, at small and at published widths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.checkpoint import load_segmentor
from tests.models.golden.networks import FILE, cases, golden_image, golden_state
from tests.models.reference import NETWORKS, full_size, logits_of, random_state, shapes_of


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(FILE)


def test_every_network_has_golden_logits(golden: dict[str, Tensor]) -> None:
    assert golden.keys() == cases().keys() >= set(NETWORKS)
    assert FILE.stat().st_size < 100_000
    for name, logits in golden.items():
        assert logits.std() > 0.05, name
        assert logits.argmax(1).unique().numel() > 1, name


@pytest.mark.parametrize("case", cases())
def test_logits_are_the_golden_ones(case: str, golden: dict[str, Tensor], tmp_path: Path) -> None:
    name, sizes = cases()[case]
    state = golden_state(name, sizes)
    torch.save(state, tmp_path / "model.pth")
    with torch.no_grad():
        assert_close(load_segmentor(tmp_path / "model.pth")(golden_image()).logits, golden[case])
    assert_close(logits_of(name, state, golden_image()), golden[case])


@pytest.mark.parametrize("name", NETWORKS)
def test_at_published_widths(name: str, tmp_path: Path) -> None:
    """ResNet-50, 512 channels, 19 classes: sums are longer there, and rounding could add up to something."""
    sizes = full_size(name, 50)
    if name not in ("ccnet", "official_ann"):  # these two are of full depth too; the others' blocks are the same
        sizes = replace(sizes, blocks=(1, 1, 1, 1))
    state = random_state(shapes_of(name, sizes))
    torch.save(state, tmp_path / "model.pth")
    image = torch.randn(1, 3, 65, 96)
    with torch.no_grad():
        logits = load_segmentor(tmp_path / "model.pth")(image).logits
    expected = logits_of(name, state, image)
    assert expected.std() > 0.05
    assert_close(logits, expected)
