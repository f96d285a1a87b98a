"""Let a model select the best of several solutions (paper section 4).

candidates.py   what may stand in a group, and how its text is cut
groups.py       groups of candidates
selecting.py    the question to the model, and the generation that holds its choice
select.py       one comparison of each group
tournament.py   one of more solutions than a comparison holds
targets.py      what is trained on: a new summary of each comparison
"""
