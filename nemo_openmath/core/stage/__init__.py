"""The Stage contract: the only way work is done here.

A stage reads finished folders, writes one folder, and is pure in what it decides: the same inputs, configuration and
seed give the same content. It may be killed at any instant and run again; it does only what is missing. Work is
divided into units with ids, so an array of jobs can share a stage by id. What it drops, it counts, with a reason.

contract.py    Stage: what every stage declares and does, and its fingerprint
unit_stage.py  UnitStage: a stage of independent units, with retries, many in flight at once
outcomes.py    what becomes of a unit: a result, a failure, or a refusal by the engine
context.py     StageContext: what a running stage may touch
services.py    Services: the engines, the sandbox and the grader that are lent to it
controls.py    Controls: planted units whose right outcome is known
defects.py     StageDefect: what the author of a stage did wrong
kinds.py       the kinds of stages by the name that recipes use
"""

from nemo_openmath.core.stage.context import StageContext
from nemo_openmath.core.stage.contract import ADDED, RUNTIME, Stage
from nemo_openmath.core.stage.controls import CONTROLS, Controls
from nemo_openmath.core.stage.defects import StageDefect
from nemo_openmath.core.stage.kinds import register, stage_kinds
from nemo_openmath.core.stage.outcomes import Refusals, Result, UnitLog
from nemo_openmath.core.stage.services import Services
from nemo_openmath.core.stage.unit_stage import UnitStage, run_bounded

__all__ = [
    "ADDED",
    "CONTROLS",
    "RUNTIME",
    "Controls",
    "Refusals",
    "Result",
    "Services",
    "Stage",
    "StageContext",
    "StageDefect",
    "UnitLog",
    "UnitStage",
    "register",
    "run_bounded",
    "stage_kinds",
]
