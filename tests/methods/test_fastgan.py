"""FastGAN: shapes of its networks, skip-layer excitation, the reconstructions, margins and augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import images, scene

from oneshotgan import config
from oneshotgan.errors import UserError
from oneshotgan.methods import fastgan
from oneshotgan.methods.fastgan import (
    Discriminator,
    FastGAN,
    FastGANSampler,
    Generator,
    SkipLayerExcitation,
    pooled,
)
from oneshotgan.parallel import ALONE

CPU = torch.device("cpu")
RESOLUTIONS = (64, 128, 256, 512, 1024)


def made(**overrides: object) -> FastGAN:
    given = {"base_width": 4, "noise_dim": 8, "batch_size": 2, "reconstruction": False} | overrides
    settings = config.with_overrides(config.preset("preview", "fastgan"), given)
    return FastGAN(settings, np.stack([scene(32, 40, seed) for seed in range(3)]), CPU, "fp32")


@pytest.fixture
def vgg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with random weights of VGG16, in use."""
    from oneshotgan.perceptual import lpips, weights

    (layers, _, _), _ = lpips._NETWORKS["vgg"]
    generator = torch.Generator().manual_seed(0)
    state = {}
    for index, channels_in, channels_out, kernel, *_ in layers:
        deviation = (2 / (channels_in * kernel**2)) ** 0.5
        shape = (channels_out, channels_in, kernel, kernel)
        state[f"features.{index}.weight"] = torch.randn(*shape, generator=generator) * deviation
        state[f"features.{index}.bias"] = torch.zeros(channels_out)
    torch.save(state, tmp_path / weights.VGG16.other_names[0])
    monkeypatch.setenv("ONESHOTGAN_WEIGHTS", str(tmp_path))
    return tmp_path


# --- the networks ---


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_shapes_at_every_resolution(resolution: int) -> None:
    G, D = Generator(resolution, 4, 8), Discriminator(resolution, 4, reconstruction=True)
    noise = [torch.randn(2, 1, side, side) for side in G.noise_sides()]
    image, small = G(torch.randn(2, 8), noise)
    side = min(128, resolution // 2)
    assert image.shape == (2, 3, resolution, resolution)
    assert small.shape == (2, 3, side, side)
    assert image.abs().max() <= 1
    logits, maps = D([image, small])
    assert logits.shape == (2, 25 + 25)
    assert [tuple(x.shape[2:]) for x in maps] == [(8, 8), (8, 8), (16, 16)]
    assert [tuple(x.shape) for x in D.reconstruct(maps, 3)] == [(2, 3, side, side)] * 3


def test_the_authors_size_has_their_blocks() -> None:
    G, D = Generator(256, 64, 256), Discriminator(256, 64, True)
    assert len(D.down) == 5
    assert len(D.excitations) == 3
    assert sorted(map(int, G.excitations)) == [64, 128, 256]
    assert [block.noises is not None for block in G.up.values()] == [True, False, True, False, True, False]
    assert [block.convolutions[-1].out_channels // 2 for block in G.up.values()] == [
        512,
        256,
        128,
        128,
        64,
        32,
    ]


def test_the_number_of_parameters() -> None:
    """Counted by hand from the widths 64·{4: 16, 8: 8, 16: 4, 32: 2, 64: 2, 128: 1, 256: ½}."""
    width = {4: 1024, 8: 512, 16: 256, 32: 128, 64: 128, 128: 64, 256: 32}

    def up(i: int, o: int, twice: bool) -> int:
        one = i * 2 * o * 9 + 2 * 2 * o
        return one + (o * 2 * o * 9 + 2 * 2 * o + 2 if twice else 0)

    def excitation(i: int, o: int) -> int:
        return i * o * 16 + o * o

    expected = 256 * 2 * width[4] * 16 + 2 * 2 * width[4]
    expected += sum(up(width[s // 2], width[s], s in (8, 32, 128)) for s in (8, 16, 32, 64, 128, 256))
    expected += excitation(width[4], width[64]) + excitation(width[8], width[128])
    expected += excitation(width[16], width[256]) + width[128] * 3 + width[256] * 3 * 9
    assert sum(p.numel() for p in Generator(256, 64, 256).parameters()) == expected


def test_the_widths_of_the_discriminator() -> None:
    """The decoders' are 32·{16: 4, 32: 2, 64: 2, 128: 1}; the small image's branch has simple blocks."""
    D = Discriminator(256, 64, True)
    assert D.decoders is not None
    for decoder, channels in zip(D.decoders, (512, 256, 256), strict=True):
        shapes = [tuple(p.shape[:2]) for name, p in decoder.named_parameters() if p.ndim == 4]
        assert shapes == [(256, channels), (128, 128), (128, 64), (64, 64), (3, 32)]
    shapes = [tuple(p.shape[:2]) for name, p in D.small.named_parameters() if p.ndim == 4]
    assert shapes == [(32, 3), (64, 32), (128, 64), (256, 128)]


@pytest.mark.parametrize("side", [4, 8])
def test_pooling_is_adaptive_pooling(side: int) -> None:
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(pooled(x, side), torch.nn.functional.adaptive_avg_pool2d(x, side))


def test_skip_layer_excitation_weighs_channels_and_nothing_else() -> None:
    excitation = SkipLayerExcitation(6, 5)
    small, large = torch.randn(2, 6, 8, 8), torch.randn(2, 5, 32, 32)
    gain = excitation(small, large) / large
    assert gain.shape == large.shape
    assert (gain > 0).all()
    assert (gain < 1).all()
    torch.testing.assert_close(gain, gain[:, :, :1, :1].expand_as(gain))
    assert not torch.allclose(gain[0], gain[1])


def test_noise_does_nothing_until_it_is_learned() -> None:
    G = Generator(64, 4, 8).eval()
    z = torch.randn(1, 8)
    drawn = [G(z, [torch.randn(1, 1, side, side) for side in G.noise_sides()])[0] for _ in range(2)]
    assert torch.equal(drawn[0], drawn[1])
    for block in G.up.values():
        for injection in block.noises or ():
            torch.nn.init.ones_(injection.weight)
    drawn = [G(z, [torch.randn(1, 1, side, side) for side in G.noise_sides()])[0] for _ in range(2)]
    assert not torch.equal(drawn[0], drawn[1])


def test_a_quadrant_is_the_same_part_of_features_and_of_image() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    parts = [fastgan.quadrant_of(x, k) for k in range(4)]
    assert [part[0, 0, 0, 0].item() for part in parts] == [0, 2, 8, 10]
    torch.testing.assert_close(torch.cat([torch.cat(parts[:2], 3), torch.cat(parts[2:], 3)], 2), x)


# --- losses and augmentation ---


def test_the_hinge_has_margins_from_0_8_to_1() -> None:
    logits, uniform = torch.tensor([[0.0, 0.9, 2.0]]), torch.tensor([[0.0, 0.5, 1.0]])
    assert fastgan.hinge(logits, True, uniform).item() == pytest.approx(0.8 / 3)
    assert fastgan.hinge(-logits, False, uniform).item() == pytest.approx(0.8 / 3)
    ones = torch.ones(1, 3)
    assert fastgan.hinge(torch.zeros(1, 3), True, ones).item() == pytest.approx(1.0)


def test_augmentation_in_the_middle_of_its_ranges_is_the_identity() -> None:
    x = [images(2, 64, 64), images(2, 32, 32)]
    same = fastgan.diff_augment(x, torch.full((2, 5), 0.5))
    for before, after in zip(x, same, strict=True):
        torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("u", "shift"), [(0.0, -8), (0.999, 8)])
def test_translation_moves_by_an_eighth_of_the_side_and_brings_zeros(u: float, shift: int) -> None:
    x = torch.ones(1, 3, 64, 64)
    moved = fastgan._moved(x, torch.tensor([u]), torch.tensor([0.5]))
    zeros = (moved[0, 0] == 0).all(dim=0)
    assert int(zeros.sum()) == 8
    assert bool(zeros[0]) == (shift < 0 and False) or bool(zeros[0] or zeros[-1])


def test_augmentation_lets_gradients_through() -> None:
    x = images(2, 32, 32).requires_grad_(True)
    fastgan.diff_augment([x], torch.rand(2, 5))[0].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


# --- the method ---


def test_the_reconstructions_of_real_images_get_better(vgg: Path) -> None:
    method = made(reconstruction=True)
    errors = [method.step(step)["reconstruction"].item() for step in range(1, 31)]
    assert np.mean(errors[-5:]) < 0.9 * np.mean(errors[:5])


def test_the_reconstruction_loss_is_a_sum_over_the_batch(vgg: Path) -> None:
    """So a batch that holds everything twice has twice the loss."""
    one, two = (made(reconstruction=True, batch_size=size) for size in (2, 4))
    real = one._reals(1)
    _, maps = one.D.eval()(real)
    doubled = [torch.cat([x, x]) for x in real]
    of_one = one._reconstruction(maps, real, 1)
    two.D.load_state_dict(one.D.state_dict())
    _, maps = two.D.eval()(doubled)
    torch.testing.assert_close(two._reconstruction(maps, doubled, 1), 2 * of_one)


def test_missing_weights_are_told_before_a_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONESHOTGAN_WEIGHTS", str(tmp_path))
    settings = config.preset("preview", "fastgan")
    with pytest.raises(UserError, match=r"no-reconstruction.*vgg16"):
        FastGAN.check(settings, ALONE)
    FastGAN.check(config.with_overrides(settings, {"reconstruction": False}), ALONE)


def test_samples_have_the_frames_shape_and_follow_the_average() -> None:
    method = made(ema_decay=0.0)
    for step in range(1, 4):
        method.step(step)
    drawn = method.generate(range(3))
    assert drawn.shape == (3, 3, 32, 40)
    assert isinstance(method.settings, config.FastGANConfig)
    sampler = FastGANSampler.load(method.settings, (32, 40), method.sampling_weights())
    assert not any("parametrizations" in name for name in method.sampling_weights())
    torch.testing.assert_close(sampler.images(sampler.latents(range(3))), drawn, atol=1e-5, rtol=0)


def test_only_the_update_of_a_network_moves_it() -> None:
    method = made(learning_rate_g=0.0)
    before = [p.clone() for p in method.G.parameters()]
    heads = [p.clone() for p in method.D.parameters()]
    method.step(1)
    assert all(torch.equal(a, b) for a, b in zip(before, method.G.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(heads, method.D.parameters(), strict=True))
