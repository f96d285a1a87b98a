"""What a training needs, before it is started: memory, time, GPU-hours, and the layouts that fit.

gpus.py      memory, peaks and links of the GPUs that we know
workload.py  what is trained: model, packs, tokens a step; from a job's file or from a model's name
memory.py    bytes of one GPU by kind, following what the trainer allocates
speed.py     seconds of a step: computing, pipeline bubble, communication
layouts.py   every layout of a number of GPUs, those that fit, fastest first, and the one to take
models.py    which model a folder or a name means
failures.py  how often to save where machines fail
table.py     the answer as text and tables
as_json.py   the same for programs
"""
