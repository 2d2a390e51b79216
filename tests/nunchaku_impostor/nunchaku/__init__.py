"""Stands in for what PyPI has under the engine's name: another project, with none of the engine's classes."""

__version__ = "0.15.4"


def nested_sampling() -> None:
    """Something for Bayesians."""
