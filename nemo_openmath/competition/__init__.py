"""The competition solver (paper section 6): a batch of solutions per problem, stopped when the first few agree.

- ``solver.py``: :func:`solve`, one problem
- ``bank.py``: the time that easy problems leave to hard ones
- ``stage.py``: the stage ``competition.solve``, problems one after the other
"""

from nemo_openmath.competition.bank import TimeBank
from nemo_openmath.competition.solver import Answer, Solver, SolverSettings, solve

__all__ = ["Answer", "Solver", "SolverSettings", "TimeBank", "solve"]
