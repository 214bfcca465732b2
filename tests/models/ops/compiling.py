"""Compiles the kernels for GPUs that need not be there, in the blocks that would run: prints what each takes.

A process of its own, since Triton either interprets or compiles.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas

from models.ops import criss_cross_triton, upsample_triton

# By compute capability, as 90 for an H100: types that networks run in there.
TYPES = {75: ("float32",), 86: ("float32", "bfloat16"), 90: ("float32", "bfloat16", "float16")}
# Two of the papers' grids, and one more: sixteen divides neither side, both, or their product alone.
GRIDS = (97, 97), (64, 128), (60, 84)
KEYS, VALUES, CLASSES = 64, 512, 19  # channels, as in the papers


class Driver:
    """What Triton asks before it compiles; each kind of GPU is a device of that number."""

    capability = 0

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


class Compiled:
    """A kernel that is compiled where it would be launched."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self.made: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **kwargs: self.made.append(self._kernel.run(*args, grid=grid, warmup=True, **kwargs))


def resources(compiled: Any, capability: int) -> dict[str, int | bool]:
    ptx = compiled.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        name = f"sm_{capability}{'a' * (capability >= 90)}"
        command = get_ptxas(capability).path, "-v", f"--gpu-name={name}", "-o", f"{source}.o", source
        told = subprocess.run(command, capture_output=True, text=True, check=True)
    spilled = re.search(r"(\d+) bytes spill stores", told.stderr + told.stdout)
    assert spilled is not None
    return {
        "shared": compiled.metadata.shared,
        "spilled": int(spilled[1]),
        "tensor cores": "mma" in ptx,
        "tf32": "tf32" in ptx,
    }


def empty(channels: int, grid: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return torch.empty(1, channels, *grid, dtype=dtype, device="meta").contiguous(memory_format=torch.channels_last)


def attend(grid: tuple[int, int], dtype: torch.dtype) -> None:
    query, key, value = (empty(channels, grid, dtype) for channels in (KEYS, KEYS, VALUES))
    criss_cross_triton.criss_cross_attention_triton(query, key, value)


def upsample(grid: tuple[int, int], dtype: torch.dtype) -> None:
    axes = [
        (torch.empty(8 * size, 4, dtype=torch.int32, device="meta"), torch.empty(8 * size, 4, device="meta"))
        for size in grid
    ]
    upsample_triton.upsample_argmax_triton(empty(CLASSES, grid, dtype)[0], *axes)


def main() -> None:
    driver = Driver()
    triton.runtime.driver.set_active(driver)
    kernels = {}
    for module, name in ((criss_cross_triton, "_attend_along_lines"), (upsample_triton, "_decide")):
        kernels[name] = Compiled(getattr(module, name))
        setattr(module, name, kernels[name])
    for capability, names in TYPES.items():
        driver.capability = capability
        for dtype in names:
            for grid in GRIDS:
                attend(grid, getattr(torch, dtype))
                upsample(grid, getattr(torch, dtype))
            for kernel, compiled in kernels.items():
                for one in {id(one): one for one in compiled.made}.values():
                    taken = resources(one, capability)
                    line = json.dumps({"kernel": kernel, "capability": capability, "type": dtype, **taken})
                    sys.stdout.write(f"{line}\n")
                compiled.made.clear()


if __name__ == "__main__":
    main()
