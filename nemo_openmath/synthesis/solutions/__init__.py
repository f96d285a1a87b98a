"""Grade solutions, filter them and make training rows of them (paper sections 2.3, 3 and 4.1).

grade.py       the verdict of each solution
label.py       majority answers and pass rates: what many solutions say about their problem
filters/       which solutions are good enough to learn from
novelty.py     which of them have code that finds something new, by votes of a model
fragments.py   blocks of code with the text around them; votes.py asks about them
summarize.py   new summaries
rows.py        training rows
shown.py       a solution in one line, for a reader
"""
