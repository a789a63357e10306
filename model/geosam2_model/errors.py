"""Every exception of the network package; it knows nothing of geosam2."""

from __future__ import annotations


class ModelError(Exception):
    """Base of everything that geosam2_model raises on purpose."""


class CheckpointError(ModelError, ValueError):
    """A checkpoint that cannot be found, fetched, verified or fitted to the network."""


class InputError(ModelError, ValueError):
    """Pixels, prompts or sizes that the network cannot take."""
