"""Learn a generative model from one photo or one short video, and draw new scenes from it.

>>> import oneshotgan
>>> gan = oneshotgan.train("balloons.png", preset="preview")   # doctest: +SKIP
>>> images = gan.sample(seeds=range(8))                        # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneshotgan.errors import UserError

if TYPE_CHECKING:
    from oneshotgan.sampling import OneShotGAN

__version__ = "0.2.0"
__all__ = ["OneShotGAN", "UserError", "train"]


def train(source: Path | str, out: Path | str | None = None, **settings: Any) -> OneShotGAN:
    """Train on one photo, video or folder of frames, as ``oneshotgan train`` does, and give the model.

    Args:
        source, out, settings: see `oneshotgan.launch.train`.

    Raises:
        UserError: a mistake or circumstance that the user can put right, in one line.
    """
    from oneshotgan.launch import train
    from oneshotgan.sampling import OneShotGAN

    return OneShotGAN.from_pretrained(train(source, out, **settings))


def __getattr__(name: str) -> Any:
    if name == "OneShotGAN":  # PyTorch is imported when it is first needed
        from oneshotgan.sampling import OneShotGAN

        return OneShotGAN
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
