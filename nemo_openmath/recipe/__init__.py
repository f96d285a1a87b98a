"""A recipe file (YAML): stages in order, run, resumed and reported.

file.py            the file and what it may say; stage_entries.py: its stages, checked; teacher.py: its teacher
registry.py        the kinds of stages of the product
runner.py          the loop: what is stale is made again, what is begun is gone on with
    selection.py       which stages a run does
    fingerprint.py     what a stage is asked to do now
    status.py          how a stage stands to that
    stage_folder.py    its folder while it is being made; outcome.py: what it has made
    preflight.py       what can be known before the first stage runs
    identity.py        whose run a folder holds; lock.py: one run at a time
    services.py        engines, sandbox and grading pool, lent to the stages
command.py         what the verbs of ``openmath recipe`` print; report_data.py: what a report is made of
lineage/           where a record or a model comes from, over all stages of a run
economics/         what the generated tokens bought
generate.py        ``openmath generate``: a recipe of two stages; sweep.py: merges, evaluated
slurm.py           ``openmath launch``: the stages as jobs of a cluster
    launch_check/      what is missing or wrong before they are submitted; model_sizes.py: how large models are
reference.py       all settings of stages and files, as text and as pages; setting_docs.py, drop_reasons.py read them
"""

from nemo_openmath.recipe.file import Recipe, load_recipe

__all__ = ["Recipe", "load_recipe"]
