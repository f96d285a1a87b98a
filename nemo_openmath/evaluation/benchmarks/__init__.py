"""Benchmarks: which are known, how a file or a dataset of one becomes problems with answers, and what is checked.

known.py     the benchmarks that are known by name: how many problems, which dataset, which columns
columns.py   rows of any file -> problem, expected answer, id and subset
sources.py   where rows are from: a file, a folder, or the `datasets` library
checks.py    duplicates, answers that the grader cannot read or that have several parts, images, counts
overlap.py   problems that a training set holds, word for word or reworded
prepare.py   all of it, and the file that comes out
"""
