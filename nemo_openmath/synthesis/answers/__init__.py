"""Which answer a problem is given, where it is from, and how probably it is right.

gather.py      the answers of all solutions, by problem
repair.py      whether any solution reaches the answer of the forum

What ``extra["answer"]`` of a problem says stands in core/records/answer_note.py.
"""
