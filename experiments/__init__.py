"""Scripts: `python -m experiments.train`, `evaluate`, `predict`, …; run them from a clone of the repository."""
