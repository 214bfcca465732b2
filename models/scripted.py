"""The stages of a network as TorchScript: from one end of a stage to the other nothing of Python runs.

A pass calls some six hundred small operators. Between any two of them Python costs time, and its lock, which a pass
beside this one, or the event loop, may hold just then.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from torch.jit.frontend import FrontendError

from models.fused import FusedConv, alone
from models.segmentor import STAGES, Segmentor

log = logging.getLogger(__name__)


class Scripted(nn.Module):
    """A module in TorchScript, where hooks can be hung: on the script itself they can't."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.script = torch.jit.script(module)
        other = alone(module)
        self.script_alone = self.script if other is None else torch.jit.script(other)
        self._beside = next((part.beside for part in module.modules() if isinstance(part, FusedConv)), 1)

    def forward(self, *inputs: Tensor) -> Tensor:
        script = self.script if torch.get_num_threads() == self._beside else self.script_alone
        out: Tensor = script(*inputs)
        return out


def script_stages(segmentor: Segmentor) -> None:
    """Replace, in place, each stage of the backbone, and of the decoder, by the same function in TorchScript.

    A stage that TorchScript can't read, or whose source is missing, stays as it is.
    """
    stages: list[tuple[nn.Module, str]] = [(segmentor.backbone, name) for name in STAGES]
    if segmentor.decoder is not None:
        stages += [(segmentor.decoder, name) for name, _ in segmentor.decoder.named_children()]
    for parent, name in stages:
        try:
            setattr(parent, name, Scripted(getattr(parent, name)))
        except (RuntimeError, FrontendError, OSError) as exc:
            log.warning("%s stays in Python, which is slower: %s", name, exc)
