from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from models import strips
from models.folding import fold_batch_norm
from models.fused import can_fuse, fuse_convolutions, has_bfloat16
from models.segmentor import Segmentor
from models.strips import Strips, run_in_strips

pytestmark = pytest.mark.skipif(not can_fuse(), reason="this torch has no fused convolutions")
bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16")


@pytest.fixture(params=[False, pytest.param(True, marks=bfloat16)], ids=["float32", "bfloat16"])
def fused(request: pytest.FixtureRequest, tiny_segmentor: Callable[[str, str], Segmentor]) -> Segmentor:
    segmentor = tiny_segmentor("mobilenet", "fcn")
    fold_batch_norm(segmentor)
    segmentor.use_channels_last()
    fuse_convolutions(segmentor, torch.randn(1, 3, 64, 48), reduced=request.param)
    return segmentor


@pytest.mark.parametrize("size", [(64, 48), (65, 80), (33, 17), (1, 1)])
@pytest.mark.parametrize("elements", [1, 3000, 1 << 30])
def test_strips_are_the_same_function(
    fused: Segmentor, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], elements: int
) -> None:
    monkeypatch.setattr(strips, "WORTH_IT", 0)
    monkeypatch.setattr(strips, "STRIP_ELEMENTS", elements)
    image = torch.randn(1, 3, *size).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        want = fused(image).logits
        run_in_strips(fused)
        torch.testing.assert_close(fused(image).logits, want)
    filters = [module.depthwise for module in fused.modules() if isinstance(module, Strips)]
    assert {filter.stride[0] for filter in filters} == {1, 2}
    assert {filter.dilation[0] for filter in filters} == {1, 2}


def test_small_maps_and_batches_go_whole(fused: Segmentor, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    run_in_strips(fused)
    monkeypatch.setattr(Strips, "_strip", refuse)
    with torch.inference_mode():
        fused(torch.randn(1, 3, 64, 48))
        for module in fused.modules():
            if isinstance(module, Strips):
                module.worth_it = 0
        fused(torch.randn(2, 3, 64, 48))
        with pytest.raises(AssertionError):
            fused(torch.randn(1, 3, 64, 48))
