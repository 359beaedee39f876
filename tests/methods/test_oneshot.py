"""One step of One-Shot GAN: order, switches, determinism, and that it learns."""

import copy

import numpy as np
import pytest
import torch

from oneshotgan import augment, config, losses
from oneshotgan.data import to_float
from oneshotgan.methods.oneshot import OneShot, OneShotSampler, rate_at
from oneshotgan.models import feature_augment

CPU = torch.device("cpu")


def picture(count: int = 1, height: int = 32, width: int = 32) -> np.ndarray:
    """A dark ground under a bright sky with one red square."""
    image = np.full((count, height, width, 3), (120, 170, 220), np.uint8)
    image[:, height * 2 // 3 :] = (60, 50, 30)
    for index in range(count):
        image[index, 6:14, 6 + index : 14 + index] = (220, 30, 30)
    return image


def method(frames: np.ndarray | None = None, precision: str = "fp32", **overrides) -> OneShot:
    settings = config.with_overrides(config.preset("preview"), {"base_width": 4} | overrides)
    return OneShot(settings, picture() if frames is None else frames, CPU, precision)


def weights(network: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def test_a_step_changes_every_weight_of_both_networks_and_of_the_average() -> None:
    one = method()
    before = weights(one.G) + weights(one.D) + weights(one.ema.network)
    one.step(1)
    after = weights(one.G) + weights(one.D) + weights(one.ema.network)
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_generators_update_leaves_the_discriminator_alone() -> None:
    one = method()
    seen = []
    original = one.optimiser_G.step
    one.optimiser_G.step = lambda: (seen.append([p.grad for p in one.D.parameters()]), original())
    one.step(1)
    assert seen == [[None] * len(list(one.D.parameters()))]


def test_same_seed_same_weights_another_seed_others() -> None:
    first, second, other = method(), method(), method(seed=1)
    for step in (1, 2):
        for one in (first, second, other):
            one.step(step)
    assert all(torch.equal(a, b) for a, b in zip(weights(first.G), weights(second.G), strict=True))
    assert not torch.equal(weights(first.G)[0], weights(other.G)[0])


def test_building_a_method_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    method()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_state_there_and_back(precision: str) -> None:
    straight, stopped = method(precision=precision), method(precision=precision)
    for step in range(1, 5):
        straight.step(step)
    for step in (1, 2):
        stopped.step(step)
    resumed = method(precision=precision)
    resumed.load_state(stopped.state())
    for step in (3, 4):
        resumed.step(step)
    for name in ("G", "D"):
        pairs = zip(weights(getattr(straight, name)), weights(getattr(resumed, name)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(straight.generate([0]), resumed.generate([0]))


def test_what_is_off_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("called")

    monkeypatch.setattr(losses, "diversity", refuse)
    monkeypatch.setattr(augment, "draw_transforms", refuse)
    monkeypatch.setattr(augment, "apply_transforms", refuse)
    monkeypatch.setattr(feature_augment, "draw", refuse)
    off = {"diversity_weight": 0, "augment_probability": 0, "feature_augment_probability": 0}
    values = method(**off).step(1)
    assert "diversity" not in values
    for name, value in [
        ("diversity_weight", 0.1),
        ("augment_probability", 0.1),
        ("feature_augment_probability", 0.1),
    ]:
        with pytest.raises(AssertionError, match="called"):
            method(**(off | {name: value})).step(1)


@pytest.mark.parametrize("off", ["content_branch", "layout_branch"])
def test_a_branch_that_is_off_leaves_generator_and_other_weights_as_they_are(off: str) -> None:
    whole, part = method(), method(**{off: False})
    assert all(torch.equal(a, b) for a, b in zip(weights(whole.G), weights(part.G), strict=True))
    for name, tensor in part.D.state_dict().items():
        assert torch.equal(tensor, whole.D.state_dict()[name])
    assert np.isfinite(float(part.step(1)["loss_D"]))


@pytest.mark.parametrize("size", [(32, 32), (32, 192), (64, 640), (96, 176), (128, 128), (320, 192)])
def test_any_size_trains(size) -> None:
    one = method(picture(1, *size), batch_size=2)
    values = one.step(1)
    assert all(np.isfinite(float(value)) for value in values.values())
    assert one.generate([0]).shape == (1, 3, *size)


def test_a_megapixel_plans_and_steps_once() -> None:
    one = method(picture(1, 1024, 1024), batch_size=2)
    assert np.isfinite(float(one.step(1)["loss_G"]))


def test_bf16_stays_near_fp32() -> None:
    full, half = method(precision="fp32").step(1), method(precision="bf16").step(1)
    for name, value in full.items():
        assert float(half[name]) == pytest.approx(float(value), rel=0.05, abs=0.02), name


def test_folded_weights_sample_the_same_images() -> None:
    one = method()
    for step in (1, 2):
        one.step(step)
    sampler = OneShotSampler.load(one.settings, (32, 32), one.sampling_weights())
    assert torch.allclose(sampler.images(sampler.latents([0, 7])), one.generate([0, 7]), atol=1e-5)


def test_one_seed_is_one_latent() -> None:
    one = method()
    sampler = OneShotSampler(one.ema.network)
    assert torch.equal(sampler.latents([3, 4])[1], sampler.latents([4, 900, 2])[0])
    assert not torch.equal(sampler.latents([3]), sampler.latents([4]))


def test_a_short_training_learns() -> None:
    """The discriminator separates, and the generator's pixel statistics move towards the photo's."""
    frames = picture()
    rates = {"learning_rate_g": 1e-3, "learning_rate_d": 1e-3, "ema_decay": 0.9}
    one = method(frames, base_width=8, diversity_weight=0.01, augment_probability=0.2, **rates)
    real = to_float(torch.from_numpy(frames))

    def distance() -> float:
        """How far mean and deviation of the generated pixels are from the photo's, over the channels."""
        fake = one.generate(range(8))
        spread = (fake.std(dim=(0, 2, 3)) - real.std(dim=(0, 2, 3))).abs().sum()
        return float((fake.mean(dim=(0, 2, 3)) - real.mean(dim=(0, 2, 3))).abs().sum() + spread)

    start = distance()
    values = [one.step(step) for step in range(1, 251)]
    chance = 8 * np.log(2)  # loss_D of a discriminator that cannot tell
    assert min(float(value["loss_D"]) for value in values) < 0.7 * chance
    assert distance() < 0.5 * start


def test_learning_rates_stay_and_then_fall_with_the_root_of_the_step() -> None:
    assert [rate_at(step, 0) for step in (1, 10**6)] == [1, 1]
    assert [rate_at(step, 100) for step in (1, 100, 400, 10_000)] == [1, 1, 0.5, 0.1]
    one = method(constant_rate_steps=1, learning_rate_g=1e-3, learning_rate_d=4e-3)
    for step in range(1, 5):
        one.step(step)
    rates = [float(each.param_groups[0]["lr"]) for each in (one.optimiser_G, one.optimiser_D)]
    assert rates == pytest.approx([0.5e-3, 2e-3])


def test_augmentation_grows_to_its_probability_and_stays() -> None:
    given = {"augment_probability": 0.7, "batch_size": 200}
    one, whole = method(augment_ramp_steps=100, **given), method(**given)

    def moved(which: OneShot, step: int) -> int:
        identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
        return int((which.draw(step).transforms_D != identity).any(dim=2).any(dim=1).sum())

    assert moved(one, 1) < 0.1 * moved(whole, 1)
    assert 0.6 < moved(one, 50) / moved(whole, 50) < 0.9
    for step in (100, 1000):
        assert torch.equal(one.draw(step).transforms_D, whole.draw(step).transforms_D)


def test_a_rate_of_zero_keeps_the_weights() -> None:
    one = method(learning_rate_d=0.0)
    before_G, before_D = weights(one.G), weights(one.D)
    one.step(1)
    assert all(torch.equal(a, b) for a, b in zip(before_D, weights(one.D), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before_G, weights(one.G), strict=True))


def test_a_state_whose_rates_are_plain_numbers_goes_on() -> None:
    """As written before rates could fall."""
    one, other = method(), method()
    one.step(1)
    state = copy.deepcopy(one.state())
    for name in ("optimiser_G", "optimiser_D"):
        state[name]["param_groups"][0]["lr"] = 5e-4
    other.load_state(state)
    for each in (one, other):
        each.step(2)
    assert all(torch.equal(a, b) for a, b in zip(weights(one.G), weights(other.G), strict=True))


def test_blocks_before_the_branching_can_be_chosen() -> None:
    one = method(low_level_blocks=3)
    assert (len(one.D.low_level.blocks), len(one.D.content.blocks), len(one.G.to_rgb)) == (3, 2, 3)
    one.step(1)
    sampler = OneShotSampler.load(one.settings, (32, 32), one.sampling_weights())
    assert torch.allclose(sampler.images(sampler.latents([0])), one.generate([0]), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_on_cuda_is_near_the_cpus(precision: str) -> None:
    settings = config.with_overrides(config.preset("preview"), {"base_width": 4})
    here = OneShot(settings, picture(), CPU, "fp32").step(1)
    there = OneShot(settings, picture(), torch.device("cuda"), precision).step(1)
    for name, value in here.items():
        assert float(there[name]) == pytest.approx(float(value), rel=0.05, abs=0.02), name


# --- coarse to fine ---

COARSE = 3


def coarse_method(**overrides) -> OneShot:
    return method(coarse_steps=COARSE, **overrides)


def changed(one: OneShot, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in one.G.named_parameters() if not torch.equal(tensor, before[name])}


def test_coarse_steps_train_all_but_the_finest_blocks_and_then_those_too() -> None:
    one = coarse_method()
    last = one.plan.blocks - 1
    finest = {name for name, _ in one.G.named_parameters() if f"s.{last}." in name or f"rgb.{last}." in name}
    start = {name: tensor.detach().clone() for name, tensor in one.G.named_parameters()}
    for step in range(1, COARSE + 1):
        one.step(step)
        assert changed(one, start) == set(start) - finest
    assert all(p.grad is None for p in one.D.low_level.blocks[0].parameters())
    one.step(COARSE + 1)
    assert changed(one, start) == set(start)
    assert one.D.low_level.coarse_entry.weight.grad is None


def test_without_coarse_steps_nothing_is_built_for_them() -> None:
    plain, coarse = method(), coarse_method()
    assert plain.D.low_level.coarse_entry is None
    extra = {"low_level.coarse_entry.weight", "low_level.coarse_entry.bias"}
    assert {n for n, _ in coarse.D.named_parameters()} - {n for n, _ in plain.D.named_parameters()} == extra
    for name, tensor in plain.D.named_parameters():
        assert torch.equal(tensor, dict(coarse.D.named_parameters())[name])


@pytest.mark.parametrize("steps", [COARSE - 1, COARSE + 1])
def test_a_model_samples_the_same_whether_or_not_its_last_block_is_trained(steps: int) -> None:
    one = coarse_method()
    for step in range(1, steps + 1):
        one.step(step)
    sampler = OneShotSampler.load(one.settings, (32, 32), one.sampling_weights())
    assert sampler.coarse is (steps <= COARSE)
    images = sampler.images(sampler.latents([0, 7]))
    assert images.shape == (2, 3, 32, 32)
    assert torch.allclose(images, one.generate([0, 7]), atol=1e-5)


def test_the_average_starts_anew_at_the_full_size() -> None:
    one = coarse_method()
    assert [round(float(one.draw(step).ema_decay), 3) for step in (1, 2, COARSE + 1, COARSE + 2)] == [
        0.1,
        0.182,
        0.1,
        0.182,
    ]


def test_a_state_from_a_gpu_goes_on_on_the_cpu() -> None:
    one, other = method(), method()
    one.step(1)
    state = copy.deepcopy(one.state())
    for name in ("optimiser_G", "optimiser_D"):
        state[name]["param_groups"][0]["capturable"] = True  # as Adam is set up there
    other.load_state(state)
    other.step(2)
    one.step(2)
    assert all(torch.equal(a, b) for a, b in zip(weights(one.G), weights(other.G), strict=True))


def test_adams_moments_of_another_memory_layout_go_on_the_same() -> None:
    one, other = method(), method()
    one.step(1)
    state = copy.deepcopy(one.state())
    for name in ("optimiser_G", "optimiser_D"):
        for moments in state[name]["state"].values():
            for key, value in moments.items():
                if value.ndim == 4:
                    moments[key] = value.contiguous(memory_format=torch.channels_last)
    other.load_state(state)
    for each in (one, other):
        each.step(2)
    assert all(torch.equal(a, b) for a, b in zip(weights(one.G), weights(other.G), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(weights(one.D), weights(other.D), strict=True))


def test_after_a_stage_is_loaded_it_draws_as_before() -> None:
    one, other = coarse_method(), coarse_method()
    for step in range(1, COARSE + 2):
        one.step(step)
    other.load_state(one.state())
    assert torch.equal(one.generate([0]), other.generate([0]))
