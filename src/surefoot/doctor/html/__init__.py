"""The report as one HTML file that needs nothing else: verdict, findings, and plots of the run."""

from surefoot.doctor.html.page import report
from surefoot.doctor.html.write import check_drawing, write_report

__all__ = ["check_drawing", "report", "write_report"]
