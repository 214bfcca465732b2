"""Which operators a network attends with: chosen once, for the device that it is on."""

from __future__ import annotations

import torch
from torch import nn

from models.heads.ann import PyramidAttention
from models.heads.ccnet import CrissCrossAttention
from models.heads.danet import PositionAttention
from models.heads.non_local import NonLocalBlock
from models.ops.attention import dense_attention_reference, pyramid_pool_reference
from models.ops.criss_cross import criss_cross_attention_reference
from models.ops.launching import can_launch


def choose_operators(network: nn.Module, device: torch.device, *, reference: bool = False) -> None:
    """Have a network run the fastest operators for inference on its device, in place of those that can also learn.

    Args:
        reference: take the slow definitions instead, to check the others by
    """
    for module in network.modules():
        if isinstance(module, CrissCrossAttention):
            if reference:
                module.attend = criss_cross_attention_reference
            elif device.type == "cuda" and can_launch():
                from models.ops.criss_cross_triton import criss_cross_attention_triton

                module.attend = criss_cross_attention_triton
        elif reference and isinstance(module, PyramidAttention | PositionAttention | NonLocalBlock):
            module.attend = dense_attention_reference
            if isinstance(module, PyramidAttention):
                module.pool = pyramid_pool_reference
