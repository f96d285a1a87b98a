"""The groups of verbs, in the order of ``openmath --help``."""

from nemo_openmath.cli import (
    certify,
    checkpoints,
    data,
    doctor,
    evaluate,
    generate,
    grade,
    jobs,
    launch,
    plan,
    recipe,
    records,
    sandbox,
    serve,
    sft,
    trace,
)

GROUPS = (
    recipe.add,
    launch.add,
    jobs.add,
    doctor.add,
    plan.add,
    sft.add,
    certify.add,
    grade.add,
    serve.add,
    generate.add,
    evaluate.add,
    sandbox.add,
    records.add,
    trace.add,
    data.add,
    checkpoints.add,
)
