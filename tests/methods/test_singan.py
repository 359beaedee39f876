"""SinGAN: the pyramid, the networks of a scale, the losses, the way from scale to scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import scene
from torch import nn

from oneshotgan import config, media
from oneshotgan.methods import singan
from oneshotgan.methods.singan import Discriminator, Generator, SinGAN, SinGANSampler

CPU = torch.device("cpu")


def settings(**overrides: object) -> config.Config:
    given = {"base_width": 4, "short_size": 32, "steps": 8, "min_size": 12} | overrides
    return config.with_overrides(config.preset("preview", "singan"), given)


def made(frames: np.ndarray | None = None, **overrides: object) -> SinGAN:
    frames = scene(32, 40)[None] if frames is None else frames
    planned = SinGAN.planned(settings(**overrides), (frames.shape[1], frames.shape[2]))
    return SinGAN(planned, frames, CPU, "fp32")


# --- the pyramid ---


def test_the_pyramid_of_a_davis_frame_is_the_published_one() -> None:
    paper = config.preset("paper", "singan")
    size = SinGAN.training_size((480, 854), paper)
    planned = SinGAN.planned(paper, (480, 854))
    assert planned.model.scales == 8
    assert planned.training.steps == 8 * 2000
    sizes = singan.pyramid_sizes(size, planned.model.scales, 25)
    assert sizes == [(25, 45), (33, 57), (41, 73), (53, 94), (68, 120), (87, 153), (111, 196), (141, 250)]


@pytest.mark.parametrize("size", [(32, 32), (33, 200), (64, 640), (100, 180), (1024, 1024), (25 * 2, 31 * 2)])
def test_any_size_has_a_pyramid_from_coarse_to_fine_within_the_limits(size: tuple[int, int]) -> None:
    paper = config.preset("paper", "singan")
    trained = SinGAN.training_size(size, paper)
    sizes = singan.pyramid_sizes(trained, singan.scale_count(size, paper), 25)
    assert sizes[-1] == trained
    assert max(trained) <= 250
    assert 11 <= min(sizes[0]) <= 26
    assert sizes == sorted(sizes)
    assert all(abs((w / h) / (size[1] / size[0]) - 1) < 0.1 for h, w in sizes)


def test_the_steps_are_divided_evenly_and_in_order() -> None:
    method = made(steps=25)
    count = len(method.sizes)
    places = [method.place(step) for step in range(1, 26)]
    scales = [scale for scale, _ in places]
    assert scales == sorted(scales)
    assert set(scales) == set(range(count))
    lengths = [scales.count(scale) for scale in range(count)]
    assert max(lengths) - min(lengths) <= 1
    for scale, length in enumerate(lengths):
        shares = [share for at, share in places if at == scale]
        assert shares == [pytest.approx(k / length) for k in range(length)]


def test_the_learning_rates_fall_to_a_tenth_after_four_fifths_of_a_scale() -> None:
    method = made(scales=2, steps=20)
    rates = []
    for step in range(1, 11):
        method.step(step)
        rates.append(method.optimiser_G.param_groups[0]["lr"])
    assert rates == [5e-4] * 8 + [pytest.approx(5e-5)] * 2


# --- the networks ---


def test_widths_double_every_four_scales_up_to_fourfold() -> None:
    assert [singan.width_at(scale, 32) for scale in (0, 3, 4, 7, 8, 12)] == [32, 32, 64, 64, 128, 128]


def test_a_generator_keeps_the_size_and_a_discriminator_loses_ten_pixels() -> None:
    x = torch.randn(2, 3, 25, 45)
    assert Generator(8)(x, x).shape == x.shape
    assert Discriminator(8)(x).shape == (2, 1, 15, 35)


def test_the_number_of_parameters() -> None:
    width = 32
    body = 3 * (width * width * 9 + width) + 4 * 2 * width  # convolutions with bias, batch norms
    head = 3 * width * 9 + width
    count = {kind: sum(p.numel() for p in kind(width).parameters()) for kind in (Generator, Discriminator)}
    assert count[Generator] == head + body + width * 3 * 9 + 3
    assert count[Discriminator] == head + body + width * 9 + 1


def test_the_receptive_field_is_eleven_pixels() -> None:
    D = Discriminator(4).eval()
    x = torch.randn(1, 3, 31, 31, requires_grad=True)
    D(x)[0, 0, 10, 10].backward()
    touched = x.grad.abs().sum(dim=(0, 1)) > 0
    rows, columns = torch.nonzero(touched, as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 20, 10, 20)


def test_a_generator_with_nothing_to_add_gives_the_image_below() -> None:
    G = Generator(4).eval()
    nn.init.zeros_(G.layers[-1].weight)
    nn.init.zeros_(G.layers[-1].bias)
    noise, previous = torch.randn(2, 1, 3, 12, 16)
    torch.testing.assert_close(G(noise, previous), previous)


# --- the losses ---


def test_the_gradient_penalty_of_a_linear_discriminator() -> None:
    class Linear(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * torch.tensor([3.0, 0.0, 4.0]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)

    penalty = singan.gradient_penalty(Linear(), torch.randn(2, 3, 6, 7))
    assert penalty.item() == pytest.approx((5 - 1) ** 2)  # at every pixel the gradient is (3, 0, 4)


def test_the_gradient_penalty_pulls_on_the_weights() -> None:
    D = Discriminator(4)
    singan.gradient_penalty(D, torch.randn(2, 3, 16, 16)).backward()
    assert all(torch.isfinite(p.grad).all() for p in D.parameters() if p.grad is not None)
    assert D.layers[0].weight.grad.abs().sum() > 0


def test_the_generator_update_is_the_sum_of_both_gradients() -> None:
    method = made(updates_g=1, steps=800)
    method._set_rates(1.0)
    twin = made(updates_g=1, steps=800)
    twin._set_rates(1.0)
    fake, same = method._fake(1, 0), twin._fake(1, 0)
    torch.testing.assert_close(fake, same)
    method._update_G(fake)
    G = twin.generators[-1]
    target = twin.real_frames[:1]
    rec = (G(twin.rec_noise, twin.rec_previous) - target).square().mean()
    (-twin.D(same).mean() + 10 * rec).backward()
    for ours, plain in zip(method.generators[-1].parameters(), G.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-6)


# --- from scale to scale ---


def test_a_scale_of_equal_width_starts_from_the_one_below_and_a_wider_one_anew() -> None:
    method = made(frames=scene(64, 80)[None], short_size=64, scales=5, steps=500)
    for scale in range(1, 5):
        below = {name: value.clone() for name, value in method.generators[-1].state_dict().items()}
        method._enter(scale)
        now = method.generators[-1].state_dict()
        equal = all(
            torch.equal(now[name], below[name]) for name in below if now[name].shape == below[name].shape
        )
        assert equal == (scale != 4)


def test_the_amplitude_is_a_tenth_of_the_reconstructions_error() -> None:
    method = made(steps=40)
    for step in range(1, 6):
        method.step(step)
    assert method.amps[0] == 1
    method._enter(1)
    _, previous = method._reconstruction_inputs(1)
    error = (previous - method.real_frames[:1]).square().mean().sqrt()
    assert method.amps[1].item() == pytest.approx(0.1 * error.item(), rel=1e-5)


def test_finished_scales_are_frozen_with_their_statistics() -> None:
    method = made(steps=12, scales=3)
    for step in range(1, 5):
        method.step(step)
    method.step(5)
    assert method.scale == 1
    frozen = {name: value.clone() for name, value in method.generators[0].state_dict().items()}
    for step in range(6, 13):
        method.step(step)
    assert all(torch.equal(value, frozen[name]) for name, value in method.generators[0].state_dict().items())


def test_z_star_becomes_the_photo(test_data: Path) -> None:
    wanted = settings(steps=500, short_size=40, base_width=16, scales=2, min_size=25)
    photo = test_data / "data" / "images" / "balloons.png"
    frames = media.read_frames(photo, lambda size: SinGAN.training_size(size, wanted), 1).images
    method = SinGAN(wanted, frames, CPU, "fp32")
    errors = [method.step(step)["reconstruction"].sqrt().item() for step in range(1, 501)]
    for scale in (0, 1):  # each scale lowers the error it begins with
        own = [error for step, error in enumerate(errors, 1) if method.place(step)[0] == scale]
        assert np.mean(own[-5:]) < 0.6 * own[0]
    assert np.mean(errors[-5:]) < 0.12  # of a range of 2; the photo's own deviation is three times that
    assert method.real_frames.std() > 0.3


def test_a_video_gives_every_step_a_frame_and_the_middle_one_z_star() -> None:
    frames = np.stack([scene(32, 40, seed) for seed in range(5)])
    method = made(frames, steps=50)
    seen = {tuple(method._reals(step).flatten()[:200].tolist()) for step in range(1, 40)}
    assert len(seen) == 5
    method._set_rates(1.0)
    _, reconstruction = method._update_G(method._fake(1, 0))
    assert method.middle == 2
    target = method.real_frames[2:3]
    again = made(frames, steps=50)
    again._set_rates(1.0)
    rec = (again.generators[-1](again.rec_noise, again.rec_previous) - target).square().mean()
    twice = made(frames, steps=50, updates_g=1)
    twice._set_rates(1.0)
    assert twice._update_G(twice._fake(1, 0))[1].item() == pytest.approx(rec.item(), rel=1e-5)
    assert reconstruction < rec


# --- sampling ---


def test_other_sizes_and_shapes_are_drawn() -> None:
    method = made(steps=6, scales=2)
    for step in range(1, 7):
        method.step(step)
    planned = SinGAN.planned(settings(steps=6, scales=2), (32, 40))
    assert isinstance(planned.model, config.SinGANConfig)
    sampler = SinGANSampler.load(planned.model, (32, 40), method.sampling_weights())
    torch.testing.assert_close(sampler.images(sampler.latents([3])), method.generate([3]))
    wide = sampler.resized((32, 100))
    images = wide.images(wide.latents([0, 1]))
    assert images.shape == (2, 3, 32, 100)
    assert not torch.equal(images[0], images[1])


def test_a_model_of_some_scales_only_is_enlarged_to_the_full_size() -> None:
    method = made(steps=60, scales=3)
    method.step(1)
    assert method.generate(range(2)).shape == (2, 3, 32, 40)
    planned = replace(method.settings)
    sampler = SinGANSampler.load(planned, (32, 40), method.sampling_weights())
    torch.testing.assert_close(sampler.images(sampler.latents([0, 1])), method.generate([0, 1]))
