"""Pages, pictures and tables from a run's records: the only place that renders."""

from nemo_openmath.evaluation.reports.build import build_report, report_json
from nemo_openmath.evaluation.reports.console import competition_lines, results_table, status_table
from nemo_openmath.evaluation.reports.view import ConfigValue, Example, Funnel, RunView, StageView, gather

__all__ = [
    "ConfigValue",
    "Example",
    "Funnel",
    "RunView",
    "StageView",
    "build_report",
    "competition_lines",
    "gather",
    "report_json",
    "results_table",
    "status_table",
]
