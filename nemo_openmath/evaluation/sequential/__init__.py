"""Compare two models until it is decided which is better, at a stated error, however the comparison is stopped.

- ``capital.py``: the rule, and bets whose capital proves a side of a difference
- ``stratified.py``: this benchmark, whose problems are fixed; samples go where they decide
- ``drawn.py``: problems like these, and a full run, whose problems are drawn one after another
- ``procedure.py``: what to sample next and what is decided, for engines, stored solutions and simulations
- ``stored.py``, ``replay.py``: what a comparison would have taken of solutions that are there
- ``rates.py``, ``simulate.py``, ``planning.py``: what a difference needs, and what a benchmark detects at all
- ``words.py``: the results in sentences
"""
