"""ANN: Asymmetric Non-local Neural Networks for Semantic Segmentation (arXiv 1908.07678)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.heads.fcn import Head
from models.layers import ConvModule
from models.ops.attention import Attend, Pool, dense_attention, pyramid_pool
from models.traces import Block, Trace

POOL_SCALES = (1, 3, 6, 8)  # 110 anchors (section 3.2)

Inner = tuple[int, int]  # channels of query and key, and of the value


class PyramidAttention(nn.Module):
    """Attention of one map's positions over pyramid-pooled keys and values of another (section 3.2)."""

    def __init__(
        self, query_channels: int, key_channels: int, out_channels: int, inner_channels: Inner, *, shared: bool
    ) -> None:
        """
        Args:
            shared: query and key are one projection (APNB), listed twice in the state dict
        """
        super().__init__()
        inner, value = inner_channels
        self.key_project = ConvModule(key_channels, inner)
        self.query_project = self.key_project if shared else ConvModule(query_channels, inner)
        self.value_project = nn.Conv2d(key_channels, value, 1)
        self.out_project = nn.Conv2d(value, out_channels, 1)
        # The block starts out adding nothing.
        for parameter in self.out_project.parameters():
            nn.init.zeros_(parameter)
        self.scale = inner**-0.5
        self.attend: Attend = dense_attention
        self.pool: Pool = pyramid_pool

    def forward(self, query_map: Tensor, key_map: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Context [B, out, H, W]; the query [B, C, H, W], pooled key [B, C, S] and logsumexp that led there."""
        projected = self.key_project(key_map)
        shared = self.query_project is self.key_project and query_map is key_map
        query = projected if shared else self.query_project(query_map)
        key = self.pool(projected, POOL_SCALES)
        value = self.pool(self.value_project(key_map), POOL_SCALES)
        context, logsumexp = self.attend(query, key, value, self.scale)
        return self.out_project(context), query, key, logsumexp


class AsymmetricBlock(nn.Module):
    """Pyramid attention, concatenated with the query's map and mixed by a 1x1 convolution."""

    def __init__(self, block: Block, attention: PyramidAttention, bottleneck: ConvModule) -> None:
        super().__init__()
        self.block = block
        self.stages = nn.ModuleList([attention])
        self.bottleneck = bottleneck

    def forward(self, query_map: Tensor, key_map: Tensor) -> tuple[Tensor, Trace]:
        context, query, key, logsumexp = self.stages[0](query_map, key_map)
        out = self.bottleneck(torch.cat([context, query_map], dim=1))
        scale = key.shape[1] ** -0.5
        return out, Trace(self.block, 1, query, key, scale=scale, pool_scales=POOL_SCALES, logsumexp=logsumexp)


class ANNHead(Head):
    """AFNB fuses stage 3 into stage 4 (section 3.3); APNB gathers context (section 3.2)."""

    def __init__(
        self,
        in_channels: tuple[int, int],
        channels: int,
        num_classes: int,
        *,
        inner_channels: tuple[Inner, Inner] | None = None,
        out_channels: tuple[int, int] | None = None,
        classifier_channels: int | None = None,
    ) -> None:
        """
        Args:
            in_channels: of stage 3 (low) and stage 4 (high)
            channels: that are left between the two blocks
            inner_channels: of AFNB and of APNB; half of `channels` if not given
            out_channels: of AFNB and of APNB, where they are others than those of their queries' maps
        """
        low, high = in_channels
        fused, context = out_channels or (high, channels)
        super().__init__(context, num_classes, classifier_channels)
        self.in_channels = {"c3": low, "c4": high}
        inner = inner_channels or ((channels // 2, channels // 2),) * 2
        self.fusion = AsymmetricBlock(
            "afnb",
            PyramidAttention(high, low, fused, inner[0], shared=False),
            ConvModule(fused + high, fused, activation=nn.Identity()),
        )
        self.fusion_dropout = nn.Dropout2d(0.1)
        self.bottleneck = ConvModule(fused, channels, 3)
        self.context = AsymmetricBlock(
            "apnb",
            PyramidAttention(channels, channels, context, inner[1], shared=True),
            ConvModule(context + channels, context),
        )

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Trace, ...]]:
        low, high = features["c3"], features["c4"]
        fused, afnb = self.fusion(high, low)
        reduced = self.bottleneck(self.fusion_dropout(fused))
        context, apnb = self.context(reduced, reduced)
        return context, (afnb, apnb)

    def timed_modules(self) -> dict[nn.Module, tuple[str, ...]]:
        return {
            self.fusion: ("afnb",),
            self.bottleneck: ("reduction",),
            self.context: ("apnb",),
            **super().timed_modules(),
        }
