"""The competition solver (paper section 6): a batch of solutions per problem, stopped when the first few agree."""

from nemo_openmath.competition.bank import TimeBank
from nemo_openmath.competition.solver import Answer, SolverSettings, solve

__all__ = ["Answer", "SolverSettings", "TimeBank", "solve"]
