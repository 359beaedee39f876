"""The two-branch discriminator: content without space, layout without content, switches, gradients."""

import pytest
import torch

from oneshotgan import losses
from oneshotgan.data import pyramid, seeded_initialisation
from oneshotgan.models.discriminator import Discriminator
from oneshotgan.models.plan import make_plan

PLAN = make_plan((64, 80), base_width=8)


def images(count: int = 2) -> list[torch.Tensor]:
    return pyramid(torch.rand(count, 3, PLAN.height, PLAN.width) * 2 - 1, PLAN.low_level_blocks)


def test_parameter_count() -> None:
    """The released program has 1.26 M, with a 3×3 convolution from 256 channels to one where we have 1×1."""
    discriminator = Discriminator(make_plan((185, 330)))
    count = sum(p.numel() for p in discriminator.parameters())
    assert round((count + 256 * 8) / 1e6, 2) == 1.26


def test_the_content_branch_does_not_see_space() -> None:
    content = Discriminator(PLAN).content
    features = torch.randn(2, PLAN.branch_widths[0], 6, 7)
    shuffled = features.flatten(2)[:, :, torch.randperm(42)].view_as(features)
    for logits, moved in zip(
        content(content.aggregate(features)), content(content.aggregate(shuffled)), strict=True
    ):
        assert logits.shape == (2, 1, 1, 1)
        assert torch.allclose(logits, moved, atol=1e-6)


def test_the_layout_branch_sees_one_channel_and_space() -> None:
    layout = Discriminator(PLAN).layout
    features = torch.randn(2, PLAN.branch_widths[0], 16, 20)
    plane = layout.aggregate(features)
    assert plane.shape == (2, 1, 16, 20)
    # A change of content that the one channel does not see changes nothing.
    weight = layout.to_one_channel.weight[0, :, 0, 0]
    unseen = torch.randn_like(weight)
    unseen -= (unseen @ weight) / (weight @ weight) * weight
    moved = layout(layout.aggregate(features + unseen[None, :, None, None]))
    for a, b in zip(layout(plane), moved, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    # A change of place is seen.
    flipped = layout(layout.aggregate(features.flip(3)))
    assert not torch.allclose(layout(plane)[0], flipped[0], atol=1e-4)


def test_a_decision_after_every_block() -> None:
    logits = Discriminator(PLAN)(images())
    assert len(logits.low_level) == PLAN.low_level_blocks
    assert len(logits.content) == len(logits.layout) == PLAN.branch_blocks
    assert all(x.shape[:2] == (2, 1) for part in logits.parts().values() for x in part)
    assert [x.shape[2:] for x in logits.low_level] == [(32, 40), (16, 20)]


def test_every_scale_is_read() -> None:
    scales = [image.requires_grad_() for image in images()]
    losses.adversarial(losses.part_losses(Discriminator(PLAN)(scales), real=True)).backward()
    assert all(image.grad.abs().sum() > 0 for image in scales)


def test_a_gradient_reaches_every_parameter() -> None:
    discriminator = Discriminator(PLAN)
    logits = discriminator(images())
    losses.adversarial(losses.part_losses(logits, real=True)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in discriminator.parameters())


@pytest.mark.parametrize("off", ["content", "layout"])
def test_a_branch_that_is_off_has_no_module_and_leaves_the_others_alone(off: str) -> None:
    with seeded_initialisation(3):
        whole = Discriminator(PLAN)
    with seeded_initialisation(3):
        part = Discriminator(PLAN, content_branch=off != "content", layout_branch=off != "layout")
    names = {name for name, _ in part.named_modules()}
    assert not any(name.split(".")[0] == off for name in names)
    for name, tensor in part.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name
    logits = part(images())
    assert off not in logits.parts()
    assert off not in losses.part_losses(logits, real=True)


def test_split_parts_the_batch() -> None:
    logits = Discriminator(PLAN)(images(5))
    first, rest = logits.split(2)
    assert all(x.shape[0] == 2 for x in first.content)
    assert all(x.shape[0] == 3 for x in rest.layout)
    assert torch.equal(torch.cat([first.low_level[0], rest.low_level[0]]), logits.low_level[0])
