"""Make the training data (paper sections 2 to 4).

problems/          from forum threads to a clean problem set
solutions/         solutions are graded, filtered, summarized and become training rows
genselect/         groups of candidate solutions, and a model that selects one of each
judge/             a model decides where the symbolic grader cannot
problem_texts.py   the problem that a solution answers
"""
