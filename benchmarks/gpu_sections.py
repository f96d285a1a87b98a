"""The sections of gpu.py, which says what each one proves. Import it in a process that is a world of one rank."""

from gpu_attention import kernel, ring
from gpu_inference import drafter, engine, sdpa
from gpu_model import model
from gpu_speed import loss, speed
from gpu_trainings import certify, deterministic, save

__all__ = [
    "certify",
    "deterministic",
    "drafter",
    "engine",
    "kernel",
    "loss",
    "model",
    "ring",
    "save",
    "sdpa",
    "speed",
]
