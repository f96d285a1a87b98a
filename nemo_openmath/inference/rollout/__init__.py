"""Generate, run code, continue: one solution as one conversation between model and sandbox.

- ``settings.py``: how a solution is sampled
- ``loop.py``: :func:`roll_out`, one solution; ``start.py``: what it begins with; ``outcome.py``: what it leaves
- ``formats.py``: how a model calls code; ``talking.py``: solutions of chat servers, ``tool_calls.py``: their calls
- ``sampler.py``: one sample of one problem, from its seed to its record
- ``counts.py``: how many samples a problem gets; ``agreement.py``: sampling until the answers agree
- ``stage.py``: the stage ``rollout.generate``, problems x samples; ``metrics.py``: what it measures
- ``answer.py``: the answer that a stored solution gave
"""

from nemo_openmath.inference.rollout.loop import roll_out
from nemo_openmath.inference.rollout.outcome import Outcome
from nemo_openmath.inference.rollout.settings import RolloutSettings, StoredRolloutSettings

__all__ = ["Outcome", "RolloutSettings", "StoredRolloutSettings", "roll_out"]
