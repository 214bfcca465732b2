"""Criss-cross attention: its forms against the roofline, and the kernels' block sizes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.criss_cross import einsum_form
from benchmarks.gpu.measure import peak_of, seconds_of
from benchmarks.gpu.scope import DEVICE, Row, Scope
from models.ops.criss_cross import criss_cross_attention, criss_cross_attention_reference


def inputs_of(grid: tuple[int, int], channels: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    few, many = channels
    sizes = (few, 0.5), (few, 0.5), (many, 1.0)
    return [
        (spread * torch.randn(1, size, *grid, device=DEVICE)).to(dtype).contiguous(memory_format=torch.channels_last)
        for size, spread in sizes
    ]


def forms() -> dict[str, Callable[..., Tensor]]:
    from models.ops.criss_cross_triton import criss_cross_attention_triton

    torch.compiler.reset()  # or else it would go on with code for any size, which is slower than one size's own
    compiled = torch.compile(einsum_form) if DEVICE.type == "cuda" else einsum_form
    return {
        "kernels": lambda *x: criss_cross_attention_triton(*x)[0],
        "torch": lambda *x: criss_cross_attention(*x)[0],
        "mmcv's form": einsum_form,
        "mmcv's form, compiled": compiled,
    }


def operators(scope: Scope, bandwidth: float) -> Iterator[Row]:
    for grid, dtype in itertools.product(scope.grids, scope.dtypes):
        inputs = inputs_of(grid, scope.channels, dtype)
        moved = sum(x.nbytes for x in inputs) + inputs[2].nbytes
        exact = criss_cross_attention_reference(*(x.double() for x in inputs))[0]
        for name, form in forms().items():
            run = partial(form, *inputs)
            error = float((run().double() - exact).abs().max())
            seconds = seconds_of(run, graph=True)
            yield {
                "grid": f"{grid[0]}x{grid[1]}",
                "type": str(dtype).removeprefix("torch."),
                "form": name,
                "us": 1e6 * seconds,
                "of roofline": moved / bandwidth / seconds,
                "MB": peak_of(run) / 1e6,
                "error": error,
            }


def blocks(scope: Scope, deadline: float) -> Iterator[Row]:
    from models.ops import criss_cross_triton as kernels

    names = ("BLOCK_QUERIES", "BLOCK_KEYS", "BLOCK_VALUES", "NUM_WARPS")
    usual = [getattr(kernels, name) for name in names]
    for grid in scope.grids:
        inputs, rows = inputs_of(grid, scope.channels, torch.bfloat16), []
        for choice in scope.blocks:
            if time.monotonic() > deadline:
                print("out of time: the other choices are left out")
                break
            for name, value in zip(names, choice, strict=True):
                setattr(kernels, name, value)
            try:
                seconds = seconds_of(partial(kernels.criss_cross_attention_triton, *inputs), graph=True)
            except Exception as error:  # noqa: BLE001 - Triton's own, when registers or shared memory don't suffice
                print(f"{choice}: {type(error).__name__}")
            else:
                rows.append((seconds, choice))
        for seconds, choice in sorted(rows)[:5]:
            yield {"grid": f"{grid[0]}x{grid[1]}", **dict(zip(names, choice, strict=True)), "us": 1e6 * seconds}
    for name, value in zip(names, usual, strict=True):
        setattr(kernels, name, value)
