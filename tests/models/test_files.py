from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.errors import CheckpointError
from models.files import RESCUE, read_file

STATE = {"one.weight": torch.arange(6.0).view(2, 3), "two.bias": torch.zeros(4, dtype=torch.float16)}


class Counter:
    """A class of somebody's own, as training loops leave it in their checkpoints."""

    def __init__(self, count: int) -> None:
        self.count = count


def write(path: Path, content: object = None) -> Path:
    if path.suffix == ".safetensors":
        save_file(STATE, path, {"title": "two"})
    else:
        torch.save({"state_dict": STATE, "meta": {"iter": 7}} if content is None else content, path)
    return path


@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors"])
def test_tensors_and_what_is_said_beside_them(tmp_path: Path, suffix: str) -> None:
    tensors, metadata, meta = read_file(write(tmp_path / f"model.{suffix}"))
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)
    assert (metadata, meta) == (({"title": "two"}, {}) if suffix == "safetensors" else ({}, {"iter": 7}))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_shapes_alone(tmp_path: Path, suffix: str) -> None:
    content = read_file(write(tmp_path / f"model.{suffix}"), weights=False)
    assert {name: tensor.shape for name, tensor in content.tensors.items()} == {
        name: tensor.shape for name, tensor in STATE.items()
    }
    assert all(tensor.is_meta for tensor in content.tensors.values())


def test_shapes_alone_of_an_old_torch_file(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    tensors = read_file(tmp_path / "old.pth", weights=False).tensors
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in STATE.items()
    }


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, weights: bool) -> None:
    path = write(tmp_path / f"model.{suffix}")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="truncated"):
        read_file(path, weights=weights)


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"state_dict": {"a": 1}}, [1], {1: torch.ones(1)}])
def test_a_file_without_a_state_dict_says_so(tmp_path: Path, content: object) -> None:
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_file(write(tmp_path / "model.pth", content))


def test_a_safetensors_file_without_tensors_says_so(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_file(tmp_path / "model.safetensors")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_tensor_is_named(tmp_path: Path, layout: torch.layout, weights: bool) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)
    with pytest.raises(CheckpointError, match=r"model\.pth: odd\.weight is a nested tensor|model\.pth: a damaged"):
        read_file(write(tmp_path / "model.pth", {**STATE, "odd.weight": nested}), weights=weights)


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize(
    ("odd", "what"),
    [
        (torch.zeros(1).expand(1 << 31, 1 << 31), "has 18446744073709551616 bytes, of which the file holds 4"),
        (torch.zeros(1).expand(1 << 62), "has 18446744073709551616 bytes, of which the file holds 4"),
        (torch.eye(3).to_sparse(), "is a torch.sparse_coo torch.float32 tensor"),
        (torch.empty(1 << 60, device="meta"), "is a torch.strided torch.float32 tensor"),
    ],
    ids=["two-sides", "one-side", "sparse", "meta"],
)
def test_a_shape_that_the_file_does_not_hold_is_refused(tmp_path: Path, odd: Tensor, what: str, weights: bool) -> None:
    """As a shape alone it would be believed, and be more than can be counted."""
    with pytest.raises(CheckpointError, match=rf"model\.pth: odd\.weight {what}"):
        read_file(write(tmp_path / "model.pth", {**STATE, "odd.weight": odd}), weights=weights)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.pth: no such file"):
        read_file(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": STATE, "meta": {"iter": 7, "counter": Counter(3), "CLASSES": ("road",)}},
        {**STATE, "counter": Counter(3)},
    ],
    ids=["mmsegmentation", "bare"],
)
def test_the_advice_for_a_file_that_needs_unpickling_works(
    tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command of the message is run as it stands; whoever trusts a file has its classes at hand."""
    old, new = tmp_path / "old.pth", tmp_path / "new.pth"
    Counter.__module__ = "trainer"
    (tmp_path / "trainer.py").write_text("class Counter: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    trainer = __import__("trainer")
    monkeypatch.setattr(trainer, "Counter", Counter)
    torch.save(content, old)
    with pytest.raises(CheckpointError) as caught:
        read_file(old)
    assert str(caught.value).endswith(RESCUE)
    command = shlex.split(RESCUE)
    assert (command[0], command[-2:]) == ("python", ["OLD.pth", "NEW.pth"])
    subprocess.run([sys.executable, *command[1:-2], old, new], cwd=tmp_path, check=True, timeout=60)
    rescued = read_file(new)
    assert rescued.tensors.keys() == STATE.keys()
    assert all(torch.equal(rescued.tensors[name], STATE[name]) for name in STATE)
    assert rescued.meta.get("CLASSES") == (["road"] if "meta" in content else None)


def test_a_dict_within_a_dict_is_looked_into_once(tmp_path: Path) -> None:
    state: dict[str, Tensor] = {"model": torch.ones(2)}
    content = read_file(write(tmp_path / "model.pth", {"state_dict": state, "model": {}}))
    assert content.tensors.keys() == {"model"}
