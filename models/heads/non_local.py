"""Non-local Neural Networks (arXiv 1711.07971) as a segmentation head: the baseline of CCNet and ANN."""

from torch import Tensor, nn

from models.heads.fcn import FCNHead
from models.layers import ConvModule
from models.ops.attention import Attend, dense_attention
from models.traces import Trace


class Projection(nn.Module):
    """A biased 1x1 convolution under the name mmcv gives it, `conv`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class NonLocalBlock(nn.Module):
    """Embedded Gaussian (section 3.2), scaled as mmcv has it: x + conv_out(softmax(theta . phi / sqrt(d)) g)."""

    def __init__(self, channels: int, inner_channels: int) -> None:
        super().__init__()
        self.g = Projection(channels, inner_channels)
        self.theta = Projection(channels, inner_channels)
        self.phi = Projection(channels, inner_channels)
        self.conv_out = ConvModule(inner_channels, channels, activation=nn.Identity())
        # The block starts as an identity (section 4.1 of the paper).
        nn.init.zeros_(self.conv_out.bn.weight)
        self.scale = inner_channels**-0.5
        self.attend: Attend = dense_attention

    def forward(self, x: Tensor) -> tuple[Tensor, Trace]:
        """[B, C, H, W] to the attended map of the same shape, and what led there."""
        query, key = self.theta(x), self.phi(x)
        context, logsumexp = self.attend(query, key.flatten(2), self.g(x).flatten(2), self.scale)
        return x + self.conv_out(context), Trace("nl", 1, query, key, scale=self.scale, logsumexp=logsumexp)


class NonLocalHead(FCNHead):
    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        *,
        inner_channels: int | None = None,
        classifier_channels: int | None = None,
    ) -> None:
        super().__init__(in_channels, channels, num_classes, classifier_channels=classifier_channels)
        self.nl_block = NonLocalBlock(channels, inner_channels or channels // 2)

    def attend(self, x: Tensor) -> tuple[Tensor, tuple[Trace, ...]]:
        x, trace = self.nl_block(x)
        return x, (trace,)

    def timed_modules(self) -> dict[nn.Module, tuple[str, ...]]:
        return {self.nl_block: ("nl",), **super().timed_modules()}
