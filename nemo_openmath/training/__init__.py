"""Sequence-packed SFT on megatron-core: one loss at every layout.

The way of a training, from a recipe or a job's file to a step:

launch.py             starts the ranks of one machine; ``python -m nemo_openmath.training``
worker.py             a rank's entry: opens model and data of the job
trainer.py            class Trainer: train, train_step, validate, save

What they use:

stage.py              training as a stage of a recipe: writes the job's file and calls launch
config.py, job.py     the settings of a job; its file, read and checked
base_model.py         what a training starts from, and what refuses to go on with another model
resume.py             going on from the newest checkpoint
forward_backward.py   the forward and backward passes of a batch; the loss's normalisation
optimizer.py          megatron-core's gradient buffers and Adam, stepped in the open; state per parameter
schedule.py           learning rate as a function of the step
checkpoint.py         saving and loading at any layout
sharded_state.py      where each parameter lies in which stored tensor
shards.py             the rows of stored tensors that a process needs, read alone
read_ahead.py         the next batch, read and sharded by a thread
metrics.py            metrics.jsonl, console, TensorBoard, wandb; the guard against divergence
profile.py            seconds of each phase of a step; traces of chosen steps
device.py             peak speed and memory of the device
rank_watch.py         ranks that hang: heartbeats, stacks, suspects
agreement.py          decisions that all ranks take alike, whatever their file systems show them
failures.py           what an error of torch means: machine, sizes, another rank's death
run_lock.py           one training at a time in an output folder
runtime.py            process group, parallel state and signals of a rank
rank_processes.py     the ranks as processes: output, deaths, signals
certificate/          what loss a right trainer reports, and one with a known fault
planning/             what a training needs before it is started
"""
