"""The kinds of stages of the product, in the order of the recipe. A new kind is one line here."""

from __future__ import annotations

from nemo_openmath.checkpoints.stages import Average, Dequantize, Merge, Quantize, TokenRows
from nemo_openmath.competition.stage import Compete
from nemo_openmath.core.stage import Stage, register
from nemo_openmath.data.packs.stage import PackSamples
from nemo_openmath.data.rows.stages import ReadRows, SelectRows
from nemo_openmath.data.tokens.stage import Tokenize
from nemo_openmath.evaluation.iterations import Best, Decide
from nemo_openmath.evaluation.problem_stages import MeasureProblems
from nemo_openmath.evaluation.rescore.changes_stage import MeasureChanges
from nemo_openmath.evaluation.rescore.stage import Rescore
from nemo_openmath.evaluation.stage import CompareScores, ComputeMetrics
from nemo_openmath.inference.rollout.stage import Generate
from nemo_openmath.speculative.stage import TrainDrafter
from nemo_openmath.synthesis.answers.stages import AnswerVotes, CalibratedAnswers
from nemo_openmath.synthesis.genselect.groups import Groups
from nemo_openmath.synthesis.genselect.select import GenSelect
from nemo_openmath.synthesis.genselect.targets import Targets
from nemo_openmath.synthesis.genselect.tournament import Tournament
from nemo_openmath.synthesis.judge.stage import JudgeAnswers
from nemo_openmath.synthesis.problems.answers import ExtractAnswers
from nemo_openmath.synthesis.problems.classify import Classify
from nemo_openmath.synthesis.problems.convert import ConvertProofs
from nemo_openmath.synthesis.problems.decontaminate import Decontaminate
from nemo_openmath.synthesis.problems.extract import Extract
from nemo_openmath.synthesis.problems.near_duplicates import NearDuplicates
from nemo_openmath.synthesis.problems.read import ReadProblems
from nemo_openmath.synthesis.problems.select import SelectProblems
from nemo_openmath.synthesis.problems.thread_groups import GroupThreads
from nemo_openmath.synthesis.problems.threads import ReadThreads
from nemo_openmath.synthesis.solutions.best_of import BestOf
from nemo_openmath.synthesis.solutions.filters import Filter
from nemo_openmath.synthesis.solutions.grade import GradeSolutions
from nemo_openmath.synthesis.solutions.label import Hardness, MajorityAnswers
from nemo_openmath.synthesis.solutions.novelty import Novelty
from nemo_openmath.synthesis.solutions.read_generations import ReadGenerations
from nemo_openmath.synthesis.solutions.rows import MakeRows
from nemo_openmath.synthesis.solutions.summarize import Summarize
from nemo_openmath.training.stage import Sft

STAGES: tuple[type[Stage], ...] = (
    # problem set (paper section 2.1)
    ReadThreads,
    GroupThreads,
    ReadProblems,
    Extract,
    NearDuplicates,
    Classify,
    ConvertProofs,
    ExtractAnswers,
    Decontaminate,
    SelectProblems,
    # solutions (2.3, 3)
    Generate,
    ReadGenerations,
    MajorityAnswers,
    GradeSolutions,
    JudgeAnswers,
    AnswerVotes,
    CalibratedAnswers,
    Hardness,
    Filter,
    Novelty,
    BestOf,
    # selection (4)
    Summarize,
    Groups,
    GenSelect,
    Targets,
    Tournament,
    # training data and training (5.1)
    MakeRows,
    ReadRows,
    SelectRows,
    Tokenize,
    PackSamples,
    Sft,
    Average,
    Merge,
    Quantize,
    Dequantize,
    TokenRows,
    TrainDrafter,
    # evaluation (5.2) and competition (6)
    ComputeMetrics,
    CompareScores,
    MeasureProblems,
    Rescore,
    MeasureChanges,
    Compete,
    # iterations (3)
    Decide,
    Best,
)


def register_stages() -> None:
    """Make every kind of ``STAGES`` known by its name. A second call changes nothing."""
    for stage in STAGES:
        register(stage)
