"""``openmath launch --check``: all that is missing or wrong, in one list, before anything is submitted.

planned.py   the launch that is looked at: recipe, cluster file, jobs
findings.py  what checks find, and the list that is printed
models.py    models, tokenizers, data, prompts
places.py    images, mounts, packages, the Hub, secrets
servers.py   who serves each model, and whether its GPUs hold it
training.py  layouts, memory, checkpoints
space.py     free space
limits.py    Slurm's limits
checks.py    all checks

A check is a function of the launch that yields what it finds. It knows nothing of the other checks, needs no GPU, and
writes nothing.
"""
