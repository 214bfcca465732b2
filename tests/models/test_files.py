from __future__ import annotations

import pickle
import shlex
import subprocess
import sys
from collections.abc import Callable
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


class RunsCode:
    """Unpickled without care, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


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


@pytest.mark.parametrize("weights", [True, False])
def test_an_old_torch_file_is_read(tmp_path: Path, weights: bool) -> None:
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    tensors = read_file(tmp_path / "old.pth", weights=weights).tensors
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in STATE.items()
    }
    assert not weights or all(torch.equal(tensors[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("kept", [0, 4, 100, -20, -1])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_truncated_and_empty_files_are_refused(tmp_path: Path, suffix: str, kept: int, weights: bool) -> None:
    path = write(tmp_path / f"model.{suffix}")
    path.write_bytes(path.read_bytes()[:kept])
    said = "not a safetensors file" if suffix == "safetensors" else "(not a|a damaged or truncated) torch checkpoint"
    with pytest.raises(CheckpointError, match=rf"model\.{suffix}: {said}"):
        read_file(path, weights=weights)


@pytest.mark.parametrize(
    "text",
    [
        "hello world\n",
        "<html><body>404 Not Found</body></html>\n",
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
    ],
    ids=["text", "html", "lfs-pointer"],
)
@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_text_files_are_refused_as_what_they_are(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=f"{name}: not a (safetensors file|torch checkpoint)"):
        read_file(tmp_path / name)


def test_arbitrary_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    generator = torch.Generator().manual_seed(0)
    for size in range(1, 60):
        path.write_bytes(bytes(torch.randint(256, (size,), generator=generator).tolist()))
        with pytest.raises(CheckpointError, match=r"model\.pth"):
            read_file(path)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, save: Callable[[object, Path], object]) -> None:
    save({"state_dict": STATE, "hook": RunsCode(tmp_path / "ran")}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"model\.pth"):
        read_file(tmp_path / "model.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        *({}, [torch.ones(1)], torch.ones(1), {"epoch": 3}, {1: torch.ones(1)}),
        *({"state_dict": None}, {"state_dict": {}}, {"state_dict": {"a": 1}}),
    ],
    ids=str,
)
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


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name}: no such file"):
        read_file(tmp_path / name)


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
    with pytest.raises(CheckpointError, match="holds more than tensors") as caught:
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
