from __future__ import annotations

import torch

from benchmarks.criss_cross import GRIDS, einsum_form, ours, random_inputs, reference, rows
from benchmarks.heads import peak_memory

CPU = torch.device("cpu")


def test_all_forms_are_one_function() -> None:
    inputs = random_inputs((9, 6), CPU)
    expected = reference(*(x.double() for x in inputs)).float()
    for form in (einsum_form, ours, reference):
        torch.testing.assert_close(form(*inputs), expected, rtol=1e-5, atol=1e-5)


def test_ours_needs_little_beyond_its_result() -> None:
    """At 128x256 mmcv's form has 168 MB beside its result."""
    with torch.inference_mode():
        inputs = [x.contiguous(memory_format=torch.channels_last) for x in random_inputs(GRIDS[-1], CPU)]
        result = inputs[2].nbytes
        assert peak_memory(lambda: ours(*inputs), CPU) - result < 11e6


def test_in_bfloat16_a_quarter_of_what_mmcv_s_form_has() -> None:
    with torch.inference_mode():
        inputs = [x.contiguous(memory_format=torch.channels_last) for x in random_inputs(GRIDS[-1], CPU)]
        inputs[2] = inputs[2].bfloat16()
        assert peak_memory(lambda: ours(*inputs), CPU) <= 235e6 / 4


def test_a_row_for_each_form() -> None:
    with torch.inference_mode():
        table = rows((6, 5), 1, CPU)
    assert list(table) == [
        "einsum form",
        "einsum form, bfloat16",
        "reference",
        "ours",
        "ours, bfloat16 values",
        "block, einsum form",
        "block, ours",
    ]
    for name, row in table.items():
        reduced = "bfloat16" in name
        assert row["seconds"] > 0
        assert row["peak_bytes"] >= row["result_bytes"] == (2 if reduced else 4) * 512 * 6 * 5
        assert ("error" in row) != name.startswith("block")
        assert row.get("error", 0) < (0.1 if reduced else 1e-5)
