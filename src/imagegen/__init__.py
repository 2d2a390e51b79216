"""imagegen: a self-hosted image generation service for one GPU and many models."""

from importlib.metadata import version

__version__ = version("imagegen")
