"""Fakes the package of the engine's name on PyPI: an unrelated project without the engine's classes."""

__version__ = "0.15.4"


def nested_sampling() -> None:
    """Something for Bayesians."""
