"""Folds batch norm into the convolution before it: the same function in fewer passes over memory."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(module: nn.Module) -> None:
    """Replace, in place, every convolution followed by its batch norm by one biased convolution.

    A norm belongs to the convolution registered just before it in the same parent, which holds for
    every block of this package. The module must be in eval mode: running statistics are used.
    """
    for parent, name, conv, norm_name, norm in _normed(module):
        folded = fuse_conv_bn_eval(conv, norm)
        # torch leaves the new bias without gradient, but a folded backbone is trained on.
        folded.requires_grad_(True)
        setattr(parent, name, folded)
        setattr(parent, norm_name, nn.Identity())


def leave_out_batch_norm(module: nn.Module) -> None:
    """Give, in place, a network that has no values yet the parameters that folding would leave it with.

    torch would fold on the meta device too, but only after importing its compiler: a second, and 150 MB.
    """
    for parent, _, conv, norm_name, _ in _normed(module):
        conv.bias = nn.Parameter(torch.empty(conv.out_channels, device=conv.weight.device))
        setattr(parent, norm_name, nn.Identity())


def _normed(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Conv2d, str, nn.BatchNorm2d]]:
    """Every convolution with the norm after it, their names, and the parent of both."""
    for parent in list(module.modules()):
        for (name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                yield parent, name, conv, norm_name, norm
