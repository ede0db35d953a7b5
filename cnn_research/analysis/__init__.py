"""Analysis: a run's directory becomes a network again, to be measured, drawn and compared."""

from cnn_research.analysis.run import Run, load_run
from cnn_research.analysis.table import Row, Table
from cnn_research.analysis.tabulate import tabulate

__all__ = ["Row", "Run", "Table", "load_run", "tabulate"]
