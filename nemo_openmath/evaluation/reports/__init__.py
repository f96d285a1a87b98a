"""Make pages, pictures and tables of a run. Nothing is rendered anywhere else.

view.py      the data of a report
build.py     report.json and report.html
problem_set.py  its tables of the problem set
samples.py   samples.html: what models were asked and said
page.py      the sections of the page; templates/ holds its HTML and CSS
figures.py   its figures
svg.py       pictures
console.py   tables for the terminal
formats.py   numbers as people read them
"""

from nemo_openmath.evaluation.reports.build import build_report, report_json
from nemo_openmath.evaluation.reports.console import competition_lines, iteration_lines, results_table, status_table
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
    "iteration_lines",
    "report_json",
    "results_table",
    "status_table",
]
