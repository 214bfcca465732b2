from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from models.heads.ann import ANNHead
from models.heads.ccnet import CCHead
from models.heads.danet import DAHead
from models.heads.fcn import Head
from models.heads.non_local import NonLocalHead
from models.operators import choose_operators
from models.ops.criss_cross import criss_cross_attention
from models.ops.launching import can_launch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FEATURES = {"c3": torch.randn(2, 12, 7, 9), "c4": torch.randn(2, 20, 7, 9)}
HEADS: dict[str, Callable[[], Head]] = {
    "ccnet": lambda: CCHead(20, 16, 5),
    "ann": lambda: ANNHead((12, 20), 16, 5),
    "nonlocal": lambda: NonLocalHead(20, 16, 5),
    "danet": lambda: DAHead(20, 16, 5),
}


@pytest.fixture
def head(request: pytest.FixtureRequest, randomize: Callable[[nn.Module], None]) -> Head:
    head = HEADS[request.param]().eval()
    randomize(head)
    return head


def operators(head: Head) -> list[str]:
    chosen = [vars(module).get(name) for module in head.modules() for name in ("attend", "pool")]
    return [operator.__name__ for operator in chosen if operator is not None]


@pytest.mark.parametrize("head", HEADS, indirect=True)
def test_the_definitions_give_the_same_context(head: Head) -> None:
    fast = operators(head)
    assert fast
    assert not any(name.endswith("_reference") for name in fast)
    with torch.inference_mode():
        expected, _ = head(FEATURES)
        choose_operators(head, CPU, reference=True)
        assert operators(head) == [f"{name}_reference" for name in fast]
        torch.testing.assert_close(head(FEATURES)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", HEADS, indirect=True)
def test_a_cpu_keeps_what_it_has(head: Head) -> None:
    before = operators(head)
    choose_operators(head, CPU)
    assert operators(head) == before


@pytest.mark.parametrize("head", ["ccnet"], indirect=True)
def test_cuda_takes_the_kernels(head: Head) -> None:
    """Which, interpreted, run here too."""
    pytest.importorskip("triton", reason="no Triton")
    device = CUDA if torch.cuda.is_available() else CPU
    head.to(device)
    features = {name: x.to(device) for name, x in FEATURES.items()}
    with torch.inference_mode():
        expected, _ = head(features)
        choose_operators(head, CUDA)
        assert head.cca.attend is not criss_cross_attention
        torch.testing.assert_close(head(features)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["ccnet"], indirect=True)
def test_cuda_without_triton_goes_on_with_torch(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    can_launch.cache_clear()
    choose_operators(head, CUDA)
    can_launch.cache_clear()
    assert head.cca.attend is criss_cross_attention
