from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from models.ops import attention, criss_cross, upsample
from models.ops.scripting import can_script, scripted

pytestmark = pytest.mark.skipif(not can_script(), reason="torch supports no TorchScript on this Python")


def halved(x: Tensor, times: int) -> Tensor:
    for _ in range(times):
        x = x / 2
    return x


def test_a_scripted_function_gives_the_same_and_is_no_python() -> None:
    fast = scripted(halved)
    assert not isinstance(fast, types.FunctionType)
    assert fast(torch.tensor(8.0), 2) == halved(torch.tensor(8.0), 2) == 2


def test_on_a_python_that_torch_has_given_up_it_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    assert scripted(halved) is halved


def test_a_function_whose_source_is_missing_stays_as_it_is() -> None:
    namespace: dict[str, Any] = {"__name__": __name__}
    exec("def twice(x): return 2 * x", namespace)
    assert scripted(namespace["twice"]) is namespace["twice"]


@pytest.mark.parametrize(
    "function",
    [
        upsample._decide_rows_scripted,
        criss_cross._attend_along_rows,
        criss_cross._attend_along_columns,
        attention._attend_to_all,
    ],
)
def test_the_loops_of_a_pass_run_without_python(function: object) -> None:
    assert isinstance(function, torch.jit.ScriptFunction)
