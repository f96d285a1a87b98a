"""How stages are configured, run, resumed, counted and watched."""

from nemo_openmath.pipeline.clock import Clock, SystemClock
from nemo_openmath.pipeline.progress import Progress
from nemo_openmath.pipeline.stage import Result, Stage, StageContext, UnitStage, register, stage_class

__all__ = [
    "Clock",
    "Progress",
    "Result",
    "Stage",
    "StageContext",
    "SystemClock",
    "UnitStage",
    "register",
    "stage_class",
]
