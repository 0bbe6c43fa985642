"""The HTML page and the table of a run, made from the files in its work directory."""

from bioimg_jax.report.calibration import write_calibration
from bioimg_jax.report.page import write_report
from bioimg_jax.report.realism import write_realism
from bioimg_jax.report.scores_csv import write_csv, write_rows
from bioimg_jax.report.strip import write_strip

__all__ = [
    "write_calibration",
    "write_csv",
    "write_realism",
    "write_report",
    "write_rows",
    "write_strip",
]
