"""What a training needs, before it is started: memory, time, GPU-hours, and the layouts that fit.

gpus.py      memory, peaks and links of the GPUs that we know
workload.py  what is trained: model, packs, tokens a step; from a job's file or from a model's name
memory.py    bytes of one GPU by kind, following what the trainer allocates
speed.py     seconds of a step: computing, pipeline bubble, communication
layouts.py   every layout of a number of GPUs, those that fit, best first
table.py     the answer as text and tables
"""
