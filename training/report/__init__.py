"""The report of a run: one HTML file that needs nothing else."""

from training.report.build import build_report

__all__ = ["build_report"]
