"""Neurons: what a layer's channels respond to, and what its codes keep of an image."""
