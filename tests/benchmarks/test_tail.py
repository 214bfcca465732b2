"""The comparison of the tail's two forms, on a small map: what it reports is there and means what it says."""

import torch

from benchmarks.tail import Setting, compare


def test_both_forms_are_measured_on_the_same_logits() -> None:
    with torch.inference_mode():
        cost = compare(Setting(19, (16, 16), (128, 128), (512, 512)), 1, torch.device("cpu"))
    assert all(seconds > 0 for seconds in cost["seconds"].values())
    assert cost["agreement"]["ids"] > 0.999
    # The plain form holds at least one map of all classes at full size; ours holds the ids, the confidence and a block.
    assert cost["peak_bytes"]["plain"] >= 19 * 512 * 512 * 4
    assert 2 * 512 * 512 <= cost["peak_bytes"]["ours"] < cost["peak_bytes"]["plain"]
