"""The recipe in miniature: a tiny honest mathematical world, a forum about it, a stand-in for the large language
model (a program, not a model), and the student's tokenizer and base checkpoint."""

from nemo_openmath.demo.forum import ForumConfig, make_threads
from nemo_openmath.demo.kinds import KINDS
from nemo_openmath.demo.rates import TeacherConfig
from nemo_openmath.demo.teacher import StandInTeacher
from nemo_openmath.demo.tokenizer import train_tokenizer
from nemo_openmath.demo.world import Item, make_benchmark, make_item, make_problems, parse, pool_of, sample

__all__ = [
    "KINDS",
    "ForumConfig",
    "Item",
    "StandInTeacher",
    "TeacherConfig",
    "make_benchmark",
    "make_item",
    "make_problems",
    "make_threads",
    "parse",
    "pool_of",
    "sample",
    "train_tokenizer",
]
