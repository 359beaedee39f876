"""The methods that can be trained and sampled, by the name they have in settings and flags."""

from typing import Any

from oneshotgan.methods.fastgan import FastGAN, FastGANSampler
from oneshotgan.methods.oneshot import OneShot, OneShotSampler
from oneshotgan.methods.singan import SinGAN, SinGANSampler

METHODS: dict[str, Any] = {"oneshot": OneShot, "singan": SinGAN, "fastgan": FastGAN}
SAMPLERS: dict[str, Any] = {"oneshot": OneShotSampler, "singan": SinGANSampler, "fastgan": FastGANSampler}
