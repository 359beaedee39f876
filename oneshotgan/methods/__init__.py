"""The methods that can be trained and sampled, by the name they have in settings and flags."""

from oneshotgan.methods.oneshot import OneShot, OneShotSampler

METHODS = {"oneshot": OneShot}
SAMPLERS = {"oneshot": OneShotSampler}
