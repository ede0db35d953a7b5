"""Slurm: nodes of GPUs, by submitit."""
