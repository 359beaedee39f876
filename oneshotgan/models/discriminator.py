"""The two-branch discriminator: low-level features, then content without space, layout without content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from oneshotgan.data import at_least_float32
from oneshotgan.models.layers import Conv2d, DiscriminatorBlock, recomputed
from oneshotgan.models.plan import Plan

FeatureTransform = Callable[[Tensor | None, Tensor | None], tuple[Tensor | None, Tensor | None]]


@dataclass(frozen=True)
class Decisions:
    """Logits of the three parts, one tensor (N, 1, h, w) per block; a branch that is off has none."""

    low_level: list[Tensor] = field(default_factory=list)
    content: list[Tensor] = field(default_factory=list)
    layout: list[Tensor] = field(default_factory=list)

    def parts(self) -> dict[str, list[Tensor]]:
        """The parts that exist, by name."""
        named = {"low_level": self.low_level, "content": self.content, "layout": self.layout}
        return {name: logits for name, logits in named.items() if logits}

    def split(self, first: int) -> tuple[Decisions, Decisions]:
        """Those on the first `first` images of the batch, and those on the rest."""
        return (
            Decisions(*([x[:first] for x in part] for part in (self.low_level, self.content, self.layout))),
            Decisions(*([x[first:] for x in part] for part in (self.low_level, self.content, self.layout))),
        )


class Discriminator(nn.Module):
    """Image pyramid -> `Decisions`.

    *Low level*: residual blocks with average pooling. The first reads the finest image through a 3×3
    from-RGB convolution; each later one reads the block before it and, concatenated, from-RGB features
    of the image at its own scale.

    *Content*: a global average pool removes all spatial information; residual blocks of 1×1 convolutions.

    *Layout*: a 1×1 convolution to one channel removes all content; residual blocks of 3×3 convolutions,
    one channel wide, with pooling.

    After every block of every part a 1×1 convolution decides.

    Args:
        content_branch, layout_branch: False leaves the branch out.
        coarse_entry: a second way in, for images of half the size: they pass over the first block.
    """

    def __init__(
        self, plan: Plan, content_branch: bool = True, layout_branch: bool = True, coarse_entry: bool = False
    ) -> None:
        super().__init__()
        self.low_level = LowLevel(plan)
        # A branch that is off is drawn too, so that the others start from the same weights.
        content, layout = ContentBranch(plan), LayoutBranch(plan)
        self.content = content if content_branch else None
        self.layout = layout if layout_branch else None
        if coarse_entry:
            self.low_level.add_coarse_entry(plan)

    def forward(
        self,
        images: list[Tensor],
        feature_transform: FeatureTransform | None = None,
        coarse: bool = False,
    ) -> Decisions:
        """Judge `images`, the finest first, each (N, 3, H / 2^i, W / 2^i).

        Args:
            feature_transform: maps the content vector (N, C, 1, 1) and the layout map (N, 1, h, w),
                None for a branch that is off, to augmented ones (see `feature_augment`).
            coarse: the images begin at half the planned size.
        """
        features, low_level = self.low_level(images, coarse)
        features = at_least_float32(features)  # what follows is small: precision costs nothing there
        vector = None if self.content is None else self.content.aggregate(features)
        plane = None if self.layout is None else self.layout.aggregate(features)
        if feature_transform is not None:
            vector, plane = feature_transform(vector, plane)
        return Decisions(
            low_level=low_level,
            content=[] if self.content is None else self.content(vector),
            layout=[] if self.layout is None else self.layout(plane),
        )


class LowLevel(nn.Module):
    """The blocks before the branching: image pyramid -> features (N, C, h, w), and their decisions."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        widths = plan.low_level_widths
        extra = [0] + [width // 8 for width in widths[1:-1]]  # from-RGB channels joined in front of block i
        self.from_rgb = nn.ModuleList(Conv2d(3, width, 3) for width in [widths[0], *extra[1:]])
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(widths[i] + extra[i], widths[i + 1], kernel=3, pool=(True, True), first=i == 0)
            for i in range(plan.low_level_blocks)
        )
        self.decisions = nn.ModuleList(Conv2d(width, 1, 1) for width in widths[1:])
        self.coarse_entry: Conv2d | None = None
        self.recompute = False  # blocks in the backward pass, to save memory

    def add_coarse_entry(self, plan: Plan) -> None:
        """Build the way in for images of half the size: in place of what the first block gives."""
        self.coarse_entry = Conv2d(3, plan.low_level_widths[1], 3)

    def forward(self, images: list[Tensor], coarse: bool = False) -> tuple[Tensor, list[Tensor]]:
        logits = []
        if coarse:
            assert self.coarse_entry is not None
            x = self.coarse_entry(images[0])
        else:
            x = self.from_rgb[0](images[0])
        for i in range(int(coarse), len(self.blocks)):
            block, decision = self.blocks[i], self.decisions[i]
            if i > 0:
                x = torch.cat([x, self.from_rgb[i](images[i - coarse])], dim=1)
            x = recomputed(block, x, self.recompute)
            logits.append(decision(x))
        return x, logits


class ContentBranch(nn.Module):
    """Judges what is in the image, wherever it is: a global average pool, then 1×1 convolutions."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        widths = plan.branch_widths
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(widths[i], widths[i + 1], kernel=1, pool=(False, False))
            for i in range(plan.branch_blocks)
        )
        self.decisions = nn.ModuleList(Conv2d(width, 1, 1) for width in widths[1:])

    def aggregate(self, features: Tensor) -> Tensor:
        """(N, C, h, w) -> the content vector (N, C, 1, 1)."""
        return features.mean(dim=(2, 3), keepdim=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        return _decide(x, self.blocks, self.decisions)


class LayoutBranch(nn.Module):
    """Judges where things are, not what they are: one channel, then 3×3 convolutions with pooling."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.to_one_channel = Conv2d(plan.branch_widths[0], 1, 1)
        height, width = (side >> plan.low_level_blocks for side in (plan.height, plan.width))
        self.blocks = nn.ModuleList(
            # a side of one pixel is not pooled
            DiscriminatorBlock(1, 1, kernel=3, pool=(height >> i > 1, width >> i > 1))
            for i in range(plan.branch_blocks)
        )
        self.decisions = nn.ModuleList(OneChannelDecision() for _ in range(plan.branch_blocks))

    def aggregate(self, features: Tensor) -> Tensor:
        """(N, C, h, w) -> the layout map (N, 1, h, w)."""
        return self.to_one_channel(features)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> list[Tensor]:
        return _decide(x, self.blocks, self.decisions)


class OneChannelDecision(nn.Module):
    """A spectrally normalised 1×1 convolution from one channel: its one weight, divided by itself, is 1.

    What is left to learn is the bias.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


def _decide(x: Tensor, blocks: nn.ModuleList, decisions: nn.ModuleList) -> list[Tensor]:
    logits = []
    for block, decision in zip(blocks, decisions, strict=True):
        x = block(x)
        logits.append(decision(x))
    return logits
