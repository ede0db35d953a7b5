"""Analysis: a run's directory becomes a network again, to be measured, drawn and compared."""

from cnn_research.analysis.run import Run, load_run

__all__ = ["Run", "load_run"]
