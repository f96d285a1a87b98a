"""A browser of solutions: ``openmath view RUN``.

    folders of records -> SolutionIndex (arrays, one pass) -> Selected (a filter's rows) -> pages

sources.py     the folders with solutions among what a user names, and the folders beside them
index.py       the index: where each solution lies, and what filters need of it
problems.py    the texts of the problems, searched as one text
building.py    makes the index in one pass over the records
filters.py     the filter of an address, and its rows
solution.py    all that is known of one solution, read when it is asked for
mathematics.py texts with their formulas as MathML, and everything else escaped
pages.py       what the templates print
server.py      the HTTP server

Nothing is ever written into a run.
"""
