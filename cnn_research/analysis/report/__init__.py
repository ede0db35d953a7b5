"""Reports: one page of a run, with all that is in it, for any browser and no network."""

from cnn_research.analysis.report.run import run_page, write_run

__all__ = ["run_page", "write_run"]
