"""Pretrained features: their weights, the LPIPS distance, and the stem of Inception-v3.

weights.py    which files there are, where they come from; found, downloaded, checked
lpips.py      the learned perceptual distance, features once per image
inception.py  the first layers of Inception-v3, for SIFID
"""

from oneshotgan.perceptual.inception import InceptionStem
from oneshotgan.perceptual.lpips import LPIPS

__all__ = ["LPIPS", "InceptionStem"]
