"""Generate, run code, continue: one solution as one conversation between model and sandbox.

- ``loop.py``: :func:`roll_out`, one solution
- ``counts.py``: how many solutions a problem gets
- ``stage.py``: the stage ``rollout.generate``, problems x solutions
- ``answer.py``: the answer that a stored solution gave
"""

from nemo_openmath.inference.rollout.loop import Outcome, RolloutSettings, roll_out

__all__ = ["Outcome", "RolloutSettings", "roll_out"]
