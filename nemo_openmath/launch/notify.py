"""Who is told when a job fails, and when a run ends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Notify:
    """What tells somebody that a job has failed, or that the run has ended."""

    command: str = ""
    """A line of shell, run on the node of the job. It reads ``$OPENMATH_STATE`` (``failed``, ``done``, ``cancelled``,
    ``gone``), ``$OPENMATH_REASON``, ``$OPENMATH_RUN``, ``$OPENMATH_JOB``, ``$OPENMATH_JOB_ID``, ``$OPENMATH_LOG``."""
    mail: bool = False
    """Let Slurm send mail to the user who launched: when a job fails, and when the run has ended."""
