"""The report of a run: one HTML page that stands on its own."""

from bioimg_jax.report.page import write_report

__all__ = ["write_report"]
