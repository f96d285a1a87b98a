"""Let a model select the best of several solutions (paper section 4).

groups.py   groups of candidates
select.py   the question to the model, and the generation that holds its choice
"""
