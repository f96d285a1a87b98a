"""The contest laboratory: stored solutions are replayed under any policy and any speed, without a clock.

- ``reading.py``: stored rollouts from records or tables; ``glimpses.py``: what is found in unfinished ones
- ``rollouts.py``, ``grouping.py``: solutions, and which of their answers are equal
- ``speed.py``, ``timing.py``: how fast solutions are written that run side by side
- ``replay.py``: one problem under one policy
- ``contest.py``: contests with the time bank; ``loss.py``: where the points went
- ``search.py``: the best of many policies, judged on problems that it was not chosen on
- ``calibration.py``: the model behind the rule ``bayes``, fitted and judged
- ``command.py``, ``page.py``: what the verbs of ``openmath contest`` print and write
"""
