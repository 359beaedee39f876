"""Learn a generative model from one photo or one short video, and draw new scenes from it."""

__version__ = "0.1.0"
