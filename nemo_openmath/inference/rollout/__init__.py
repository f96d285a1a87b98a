"""Generate, run code, continue: one solution as one conversation between model and sandbox."""

from nemo_openmath.inference.rollout.ask import ask
from nemo_openmath.inference.rollout.loop import Outcome, RolloutSettings, roll_out

__all__ = ["Outcome", "RolloutSettings", "ask", "roll_out"]
