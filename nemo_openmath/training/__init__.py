"""Sequence-packed SFT on megatron-core: one loss at every layout.

config.py        a job: model, data, optimisation, layout, checkpoints
run.py           a rank's entry; launch_local.py starts the ranks of one machine; __main__.py both
loop.py          the training loop: resume, steps, validation, saves, preemption
step.py          one optimizer step; the loss's normalisation
read_ahead.py    the next batch, read and sharded by a thread
schedule.py      learning rate as a function of the step
optimizer.py     megatron-core's gradient buffers and Adam, stepped in the open; state per parameter
checkpoint.py    saving and loading at any layout
shards.py        the rows of stored tensors that a process needs, read alone
metrics.py       metrics.jsonl, console, TensorBoard, wandb; the guard against divergence
claim.py         one training at a time in an output folder
profile.py       seconds of each part of a step; traces of chosen steps
runtime.py       process group and parallel state of a rank
stage.py         training as a stage of a recipe
"""
