"""Which answer a problem is given, where it is from, and how probably it is right.

gather.py        the answers of all solutions, by problem
repair.py        whether any solution reaches the answer of the forum
origins.py       counts of where answers are from
votes.py         who gave which answer, by meaning
patterns.py      problems with the same votes, and the hypotheses about them
latent.py        the model: P(answer right), the reliability of each source
noise.py         the wrong answers among those that are kept; what to keep for a budget
reliability.py   whether the probabilities are true, where the truth is known
stages.py        the stages ``solutions.answer_votes`` and ``solutions.calibrated_answers``

What ``extra["answer"]`` of a problem says stands in core/records/answer_note.py.
"""
