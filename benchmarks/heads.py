"""What each head costs, and by how much both papers' attention undercuts the plain Non-local block.

`python -m benchmarks.heads [--rounds N]` prints tables and writes benchmarks/results/heads.json.

Settings, batch 1, float32, batch norm folded as the service folds it:
- ours: the networks that `training` makes, at 640x480, in channels-last memory;
- paper: the heads as the papers and mmsegmentation have them, on a ResNet's 2048 channels (ANN: and 1024 of stage 3) at
  stride 8 of a 769x769 crop, CCNet's own setting; features are random.
The blocks alone at the settings of both papers, beside their published figures, are in `benchmarks.attention`.

Columns:
- M: million parameters. A head goes from features to context; its classifier, alike in all, counts with the network.
- GFLOPs: of convolutions and matrix products, a multiply-add being two; pooling, softmax and the like are not counted.
- ms: CPU time over all threads (on CUDA: wall time), median of rounds in which all parts take turns.
- MB: most that was allocated at once during a forward pass without gradients, beyond weights and input. Torch's own
  allocator counts it, kernels' buffers included, so it is exact and repeatable; some buffers grow with the threads.

Attention is the blocks alone, all on the same map: CCNet's two passes; ANN's APNB with its output projection, but not
the convolution that joins it to its input, as its authors measured it; Non-local's block. `nonlocal` is that block as
the service runs it, `nonlocal, map kept` the plain one that the papers compare with: its attention map lies in memory.
ANN's other block, AFNB, is in its head's figures only: it fuses two stages, which the other heads do not.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.forward import SIZE, measure
from benchmarks.machine import describe
from models.folding import fold_batch_norm
from models.heads.ann import ANNHead
from models.heads.ccnet import CCHead
from models.heads.fcn import FCNHead, Head
from models.heads.non_local import NonLocalHead
from training.network import CHANNELS, HeadName, new_segmentor

HEADS: tuple[HeadName, ...] = ("fcn", "ccnet", "ann", "nonlocal")
PLAIN = "nonlocal, map kept"
PAPER_MAP = (97, 97)
RESULTS = Path(__file__).parent / "results" / "heads.json"

Run = Callable[[], object]


@dataclass(frozen=True)
class Part:
    parameters: int
    run: Run


@dataclass(frozen=True)
class Cost:
    parameters: int
    flops: int
    seconds: float
    peak_bytes: int


def paper_heads() -> dict[str, Head]:
    return {
        "fcn": FCNHead(2048, 512, 19),
        "ccnet": CCHead(2048, 512, 19),
        "ann": ANNHead((1024, 2048), 512, 19),
        "nonlocal": NonLocalHead(2048, 512, 19),
    }


def blocks_of(heads: Mapping[str, Head]) -> dict[str, nn.Module]:
    """The attention blocks that all read the reduced map."""
    paths = {"ccnet": "cca", "ann": "context.stages.0", "nonlocal": "nl_block"}
    return {name: heads[name].get_submodule(path) for name, path in paths.items()}


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def head_parts(heads: Mapping[str, Head], features: Mapping[str, Tensor]) -> dict[str, Part]:
    def part(head: Head) -> Part:
        return Part(count_parameters(head) - count_parameters(head.conv_seg), lambda: head(features))

    return {name: part(head) for name, head in heads.items()}


def attention_parts(blocks: Mapping[str, nn.Module], x: Tensor) -> dict[str, Part]:
    """
    Args:
        x: the map [B, C, H, W] that all blocks read
    """
    cca, apnb, nl = blocks["ccnet"], blocks["ann"], blocks["nonlocal"]

    def twice() -> object:
        first = cca(x)
        return first, cca(first[0])

    plain: Any = copy.copy(nl)
    plain.attend = attention_by_map

    return {
        "ccnet": Part(count_parameters(cca), twice),
        "ann": Part(count_parameters(apnb), lambda: apnb(x, x)),
        "nonlocal": Part(count_parameters(nl), lambda: nl(x)),
        PLAIN: Part(count_parameters(nl), lambda: plain(x)),
    }


def attention_by_map(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, None]:
    """Dense attention as the papers' authors run it, its whole map in memory; arguments as of `dense_attention`."""
    affinity = scale * torch.einsum("bchw,bcs->bhws", query, key)
    return torch.einsum("bhws,bvs->bvhw", affinity.softmax(-1), value), None


def count_flops(run: Run) -> int:
    # torch counts nothing for the CPU's fused attention, which is the same products as any other.
    fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _count_fused}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=fused) as counter:
        run()
    return int(counter.get_total_flops())


def _count_fused(query: list[int], key: list[int], value: list[int], *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def peak_memory(run: Run, device: torch.device) -> int:
    """Most bytes allocated at once during a run, its result included, beyond what was allocated before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return int(torch.cuda.max_memory_allocated(device)) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else two lines on stderr for each profile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    recorded = profiler.profiler
    assert recorded is not None
    assert recorded.kineto_results is not None
    # One event for each tensor or buffer that came (its bytes) or went (minus its bytes).
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((int(event.nbytes()) for event in events), initial=0))


def costs(parts: Mapping[str, Part], rounds: int, device: torch.device) -> dict[str, Cost]:
    # Counting comes first: it also warms up, so that a library's workspace is no part's own.
    flops = {name: count_flops(part.run) for name, part in parts.items()}
    seconds = measure({name: part.run for name, part in parts.items()}, rounds, device)
    return {
        name: Cost(part.parameters, flops[name], seconds[name], peak_memory(part.run, device))
        for name, part in parts.items()
    }


def our_parts(device: torch.device) -> dict[str, dict[str, Part]]:
    networks = {name: new_segmentor(name, 11, None, 16).eval() for name in HEADS}
    for network in networks.values():
        fold_batch_norm(network)
        network.to(device).use_channels_last()
    image = torch.randn(1, 3, *SIZE, device=device).contiguous(memory_format=torch.channels_last)
    features = networks["fcn"].backbone(image)
    heads: dict[str, Head] = {name: network.decode_head for name, network in networks.items()}
    reduced = torch.randn(1, CHANNELS, *features["c4"].shape[2:], device=device)

    def whole(name: HeadName) -> Part:
        return Part(count_parameters(networks[name]), lambda: networks[name](image))

    return {
        "head": head_parts(heads, features),
        "attention": attention_parts(blocks_of(heads), reduced.contiguous(memory_format=torch.channels_last)),
        "network": {name: whole(name) for name in HEADS},
    }


def paper_parts(device: torch.device) -> dict[str, dict[str, Part]]:
    heads = paper_heads()
    for head in heads.values():
        fold_batch_norm(head.eval())
        head.to(device)
    features = {name: torch.randn(1, size, *PAPER_MAP, device=device) for name, size in (("c3", 1024), ("c4", 2048))}
    reduced = torch.randn(1, 512, *PAPER_MAP, device=device)
    return {"head": head_parts(heads, features), "attention": attention_parts(blocks_of(heads), reduced)}


def ratios(table: Mapping[str, Cost]) -> dict[str, dict[str, float]]:
    """What the papers' attention costs, as a part of the plain Non-local block's cost."""
    plain = table[PLAIN]
    return {
        name: {
            "flops": table[name].flops / plain.flops,
            "seconds": table[name].seconds / plain.seconds,
            "peak_bytes": table[name].peak_bytes / plain.peak_bytes,
        }
        for name in ("ccnet", "ann")
    }


def show(title: str, table: Mapping[str, Cost]) -> None:
    print(f"\n{title:<24}{'M':>8}{'GFLOPs':>10}{'ms':>10}{'MB':>10}")
    for name, cost in table.items():
        numbers = cost.flops / 1e9, 1000 * cost.seconds, cost.peak_bytes / 1e6
        print(f"{name:<24}{cost.parameters / 1e6:8.3f}" + "".join(f"{number:10.2f}" for number in numbers))


def show_ratios(title: str, table: Mapping[str, Mapping[str, float]]) -> None:
    print(f"\n{f'{title}, % of {PLAIN}':<42}{'FLOPs':>10}{'ms':>10}{'MB':>10}")
    for name, ratio in table.items():
        print(f"{name:<42}" + "".join(f"{100 * ratio[what]:10.1f}" for what in ("flops", "seconds", "peak_bytes")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = {}

    print(f"heads on {device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    with torch.inference_mode():
        for setting, parts_on in (("ours", our_parts), ("paper", paper_parts)):
            results[setting] = {
                what: costs(parts, arguments.rounds, device) for what, parts in parts_on(device).items()
            }
            for what, table in results[setting].items():
                show(f"{setting}: {what}", table)
            show_ratios(f"{setting}: attention", ratios(results[setting]["attention"]))

    RESULTS.write_text(
        json.dumps(
            {
                "measured_on": {**describe(device), "rounds": arguments.rounds},
                "costs": {
                    setting: {
                        what: {name: asdict(cost) for name, cost in table.items()} for what, table in tables.items()
                    }
                    for setting, tables in results.items()
                },
                "attention_to_plain_nonlocal": {
                    setting: ratios(tables["attention"]) for setting, tables in results.items()
                },
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
