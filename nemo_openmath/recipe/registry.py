"""Every room that has stages, imported so that they are registered."""

from nemo_openmath.checkpoints import stages as checkpoint_stages
from nemo_openmath.competition import stage as competition_stages
from nemo_openmath.data import stages as sft_stages
from nemo_openmath.data.rows import stage as sft_read_stage
from nemo_openmath.demo import stages as demo_stages
from nemo_openmath.evaluation import stage as evaluation_stages
from nemo_openmath.inference.rollout import stage as rollout_stages
from nemo_openmath.speculative import stage as drafter_stages
from nemo_openmath.synthesis import genselect, problems, solutions
from nemo_openmath.synthesis.judge import stage as judging_stages
from nemo_openmath.training import stage as training_stages

ROOMS = (
    problems,
    solutions,
    genselect,
    rollout_stages,
    judging_stages,
    sft_read_stage,
    sft_stages,
    training_stages,
    checkpoint_stages,
    drafter_stages,
    evaluation_stages,
    demo_stages,
    competition_stages,
)
