"""CCNet: Criss-Cross Attention for Semantic Segmentation (arXiv 1811.11721)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.heads.fcn import FCNHead
from models.layers import Scale
from models.ops.criss_cross import criss_cross_attention
from models.traces import Trace


class CrissCrossAttention(nn.Module):
    """One pass of criss-cross attention with its residual, gamma * context + x (section 3.2)."""

    def __init__(self, channels: int, query_channels: int) -> None:
        super().__init__()
        self.query_conv = nn.Conv2d(channels, query_channels, 1)
        self.key_conv = nn.Conv2d(channels, query_channels, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = Scale()
        self.attend: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = criss_cross_attention

    def forward(self, x: Tensor, step: int = 1) -> tuple[Tensor, Trace]:
        """[B, C, H, W] to the attended map of the same shape, and what led there."""
        # One copy here saves the attention, which reads lines of positions, a copy of each of its inputs.
        x = x.contiguous(memory_format=torch.channels_last)
        query, key = self.query_conv(x), self.key_conv(x)
        context, logsumexp = self.attend(query, key, self.value_conv(x))
        trace = Trace("cca", step, query, key, gamma=self.gamma.scale, logsumexp=logsumexp)
        # gamma * context + x, without the product in memory
        return torch.addcmul(x, context, self.gamma.scale), trace


class CCHead(FCNHead):
    """Recurrent criss-cross attention: R passes with shared weights, so that R = 2 reaches every position."""

    def __init__(  # noqa: PLR0913 - all that makes one CCNet differ from another
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        *,
        query_channels: int | None = None,
        recurrence: int = 2,
        context_channels: int | None = None,
        classifier_channels: int | None = None,
        slope: float = 0.0,
    ) -> None:
        """
        Args:
            context_channels, slope: as in `FCNHead`
        """
        super().__init__(
            in_channels,
            channels,
            num_classes,
            context_channels=context_channels,
            classifier_channels=classifier_channels,
            slope=slope,
        )
        self.cca = CrissCrossAttention(channels, query_channels or channels // 8)
        self.recurrence = recurrence

    def attend(self, x: Tensor) -> tuple[Tensor, tuple[Trace, ...]]:
        traces = []
        for step in range(1, self.recurrence + 1):
            x, trace = self.cca(x, step)
            traces.append(trace)
        return x, tuple(traces)

    def timed_modules(self) -> dict[nn.Module, tuple[str, ...]]:
        steps = tuple(f"cca_{step}" for step in range(1, self.recurrence + 1))
        return {self.cca: steps, **super().timed_modules()}
