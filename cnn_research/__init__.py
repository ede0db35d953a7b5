"""Convolutional networks in JAX: the networks as pure functions, their training and their analysis."""

__version__ = "0.1.0"
