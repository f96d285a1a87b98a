"""Runs compared on the problems that all of them have, as a page, as Markdown and as JSON.

    folders of graded generations -> ReadRun (counts, one pass) -> benchmarks -> ModeComparison -> page

reading.py    what a folder of generations holds: problems, samples, lengths, verdicts
common.py     which runs have problems in common, and what forbids a comparison
numbers.py    the numbers: curves with intervals, histograms, paired differences, problems whose verdict differs
drawing.py    the numbers as pictures
page.py       the page; markdown.py: the same as text
"""
