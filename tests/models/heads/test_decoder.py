from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads.decoder import Decoder, Refinement

Randomize = Callable[[nn.Module], None]


@pytest.fixture
def decoder(randomize: Randomize) -> Decoder:
    decoder = Decoder(8, (3, 5), (6, 7)).eval()
    randomize(decoder)
    return decoder


def fine_features(height: int, width: int) -> dict[str, Tensor]:
    return {"c1": torch.randn(2, 3, height, width), "c2": torch.randn(2, 5, (height + 1) // 2, (width + 1) // 2)}


@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 9), (1, 5), (1, 1)])
def test_output_is_at_the_finest_size(decoder: Decoder, height: int, width: int) -> None:
    context = torch.randn(2, 8, (height + 3) // 4, (width + 3) // 4)
    assert decoder(context, fine_features(height, width)).shape == (2, 6, height, width)


@pytest.mark.parametrize("name", ["c1", "c2"])
def test_each_finer_map_matters(decoder: Decoder, name: str) -> None:
    context, features = torch.randn(2, 8, 4, 4), fine_features(16, 16)
    other = {**features, name: fine_features(16, 16)[name]}
    assert not torch.allclose(decoder(context, features), decoder(context, other))


def test_coarse_map_comes_first_and_is_resized_bilinearly(randomize: Randomize) -> None:
    refinement = Refinement(4, 2, 3).eval()
    randomize(refinement)
    coarse, fine = torch.randn(1, 4, 3, 5), torch.randn(1, 2, 7, 9)
    resized = F.interpolate(coarse, (7, 9), mode="bilinear", align_corners=False)
    torch.testing.assert_close(refinement(coarse, fine), refinement.mix(torch.cat([resized, fine], dim=1)))
