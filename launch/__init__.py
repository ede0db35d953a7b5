"""Pods and clusters: what starts the scripts of `experiments` as processes."""
