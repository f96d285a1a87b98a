"""What recipes can name: the product's kinds of stages, and those of the demo with its stand-in for the teacher."""

from __future__ import annotations

from nemo_openmath.core.stage import register
from nemo_openmath.demo import stages as demo
from nemo_openmath.demo import teacher
from nemo_openmath.demo.rates import TeacherConfig
from nemo_openmath.recipe.registry import register_stages
from nemo_openmath.recipe.teacher import StandIn, register_stand_in

_STAND_IN = StandIn(TeacherConfig, teacher.command, teacher.DISCLOSURE)


def register_all() -> None:
    """Register all kinds of stages and the stand-in. A second call changes nothing."""
    register_stages()
    for stage in demo.STAGES:
        register(stage)
    register_stand_in(_STAND_IN)
