"""Criss-cross attention as two fused kernels: neither affinities nor weights ever leave the chip.

One kernel attends along lines. It runs over rows first, then over columns, where it leaves out each position itself and
adds what it finds to what the rows have left, by the log-sum-exp of both: the softmax over the whole cross, exactly.
Affinities and sums are float32, whatever the inputs are. Only for inference: there is no backward pass.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Block sizes: queries and keys of a line, and value channels. Each block of value channels computes the affinities
# again. A first choice, by what fits into the registers and shared memory of an H100; not measured yet.
BLOCK_QUERIES, BLOCK_KEYS, BLOCK_VALUES = 64, 64, 256
NUM_WARPS, NUM_STAGES = 8, 2
# Most queries and keys in a block of float32, which tensor cores don't multiply: with more, most registers would spill
# to memory, and many GPUs have not enough shared memory.
MOST_FLOAT32 = 32

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def criss_cross_attention_triton(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Arguments and results as of `criss_cross_attention`, without gradients; float32, bfloat16 or float16."""
    batch, channels, height, width = value.shape
    context = torch.empty(batch, height, width, channels, dtype=value.dtype, device=value.device).permute(0, 3, 1, 2)
    of_rows, of_cross = (torch.empty(batch, height, width, device=value.device) for _ in range(2))
    along_rows = query, key, value, context
    _attend(along_rows, of_rows, of_rows, adds=False)
    _attend(tuple(x.mT for x in along_rows), of_rows.mT, of_cross.mT, adds=True)
    return context, of_cross


def _attend(tensors: tuple[Tensor, ...], before: Tensor, logsumexp: Tensor, *, adds: bool) -> None:
    """Attention along the last axis.

    Args:
        tensors: query and key [B, C, L, N], value and context [B, V, L, N]
        before, logsumexp: [B, L, N], read if this adds to a context, and written
    """
    query, key, value, context = tensors
    batch, channels, lines, length = value.shape
    block_values = min(BLOCK_VALUES, max(16, triton.next_power_of_2(channels)))
    most = MOST_FLOAT32 if value.dtype == torch.float32 else max(BLOCK_QUERIES, BLOCK_KEYS)
    block_queries, block_keys = min(BLOCK_QUERIES, most), min(BLOCK_KEYS, most)
    grid = (triton.cdiv(length, block_queries) * triton.cdiv(channels, block_values), lines, batch)
    _attend_along_lines[grid](
        query,
        key,
        value,
        context,
        before,
        logsumexp,
        *query.stride(),
        *key.stride(),
        *value.stride(),
        *context.stride(),
        *logsumexp.stride(),
        length,
        query.shape[1],
        channels,
        ADDS=adds,
        # Triton's interpreter takes the bits of a bfloat16 for an integer. In float32 the products are the same.
        FACTORS=tl.float32 if triton.knobs.runtime.interpret else _TYPES[value.dtype],
        BLOCK_QUERIES=block_queries,
        BLOCK_KEYS=block_keys,
        BLOCK_CHANNELS=max(16, triton.next_power_of_2(query.shape[1])),
        BLOCK_VALUES=block_values,
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
    )


# Whether sixteen divides a map's sides is of no use here. Triton would compile for either, and the first request of
# another size would wait for that.
@triton.jit(do_not_specialize_on_alignment=["length", "sum_batch", "sum_line", "sum_position"])
def _attend_along_lines(
    query, key, value, context, before, logsumexp,
    query_batch, query_channel, query_line, query_position,
    key_batch, key_channel, key_line, key_position,
    value_batch, value_channel, value_line, value_position,
    context_batch, context_channel, context_line, context_position,
    sum_batch, sum_line, sum_position,
    length, channels, value_channels,
    ADDS: tl.constexpr, FACTORS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_VALUES: tl.constexpr,
):  # fmt: skip
    """A block of a line's positions and of the value channels; strides are named after tensor and axis."""
    queries_in_line = tl.cdiv(length, BLOCK_QUERIES)
    part = tl.program_id(0) // queries_in_line
    line = tl.program_id(1).to(tl.int64)
    image = tl.program_id(2).to(tl.int64)
    position = (tl.program_id(0) % queries_in_line) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    channel = tl.arange(0, BLOCK_CHANNELS)
    out_channel = part * BLOCK_VALUES + tl.arange(0, BLOCK_VALUES)
    inside, wanted = position < length, out_channel < value_channels

    query += image * query_batch + line * query_line
    key += image * key_batch + line * key_line
    value += image * value_batch + line * value_line
    context += image * context_batch + line * context_line
    before += image * sum_batch + line * sum_line
    logsumexp += image * sum_batch + line * sum_line

    queries = tl.load(
        query + position[:, None] * query_position + channel[None, :] * query_channel,
        mask=inside[:, None] & (channel[None, :] < channels),
        other=0.0,
    ).to(FACTORS)
    outs = context + position[:, None] * context_position + out_channel[None, :] * context_channel
    kept = inside[:, None] & wanted[None, :]
    if ADDS:
        # The row's context is a mean of weight one under its log-sum-exp.
        highest = tl.load(before + position * sum_position, mask=inside, other=0.0)
        total = tl.full([BLOCK_QUERIES], 1.0, tl.float32)
        seen = tl.load(outs, mask=kept, other=0.0).to(tl.float32)
    else:
        highest = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_QUERIES], tl.float32)
        seen = tl.zeros([BLOCK_QUERIES, BLOCK_VALUES], tl.float32)

    for first in range(0, length, BLOCK_KEYS):
        other = first + tl.arange(0, BLOCK_KEYS)
        there = other < length
        keys = tl.load(
            key + other[None, :] * key_position + channel[:, None] * key_channel,
            mask=there[None, :] & (channel[:, None] < channels),
            other=0.0,
        )
        affinity = tl.dot(queries, keys.to(FACTORS), input_precision="ieee")  # of use to float32 alone
        counts = there[None, :]
        if ADDS:
            counts = counts & (other[None, :] != position[:, None])
        affinity = tl.where(counts, affinity, float("-inf"))
        # Finite from the first block on: of rows it has a position, of columns the rows came before.
        higher = tl.maximum(highest, tl.max(affinity, 1))
        weights = tl.exp(affinity - higher[:, None])
        shrunk = tl.exp(highest - higher)
        total = total * shrunk + tl.sum(weights, 1)
        values = tl.load(
            value + other[:, None] * value_position + out_channel[None, :] * value_channel,
            mask=there[:, None] & wanted[None, :],
            other=0.0,
        )
        weights = weights.to(values.dtype).to(FACTORS)
        seen = tl.dot(weights, values.to(FACTORS), seen * shrunk[:, None], input_precision="ieee")
        highest = higher

    tl.store(outs, (seen / total[:, None]).to(context.dtype.element_ty), mask=kept)
    if part == 0:
        tl.store(logsumexp + position * sum_position, highest + tl.log(total), mask=inside)
