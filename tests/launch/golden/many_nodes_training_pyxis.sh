#!/bin/bash
# train (training.sft) of /shared/recipe.yaml
#SBATCH --job-name=run.train
#SBATCH --chdir=/shared/run
#SBATCH --output=/shared/run/sbatch/logs/%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=2
#SBATCH --gpus-per-node=8
#SBATCH --mem=4G
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
# shellcheck disable=SC1091,SC2016,SC2034,SC2154 # functions.sh reads and sets variables; what is in single quotes is for another shell
set -uo pipefail
early=
trap 'early=yes' USR1 TERM # a signal that comes before `begin`

[...]

recipe_run() { # recipe_run OPTION ...: the stage, in one process
  run srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --export=ALL,PYTHONNOUSERSITE=1 --container-image=/i/openmath.sqsh '--container-mounts=/a b:/a b' --container-workdir="$PWD" --container-env=PYTHONPATH,MASTER_ADDR,MASTER_PORT \
    openmath recipe run /shared/recipe.yaml --output /shared/run --only train "$@"
}

recipe_run --prepare # writes job.yaml
if [ ! -e /shared/run/train/manifest.json ]; then # with it, this stage was finished before
  head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  MASTER_ADDR=$(address_of "$head")
  export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
  # Tasks that are left so long after one has failed are killed: they wait for it, or are stopped.
  # One task is one rank. No torchrun: its agent turns exit code 75 into 1, and SIGTERM into a kill before all is saved.
  run srun --kill-on-bad-exit=0 --wait=$((hang_seconds < 300 ? hang_seconds : 300)) --export=ALL,PYTHONNOUSERSITE=1 --container-image=/i/openmath.sqsh '--container-mounts=/a b:/a b' --container-workdir="$PWD" --container-env=PYTHONPATH,MASTER_ADDR,MASTER_PORT bash -c \
    'source "$1/network.sh"; use_interface auto "$MASTER_ADDR"; export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; exec python -m nemo_openmath.training.worker "$0"' \
    /shared/run/train/job.yaml "$output/sbatch"
fi
release_nodes # the checksums of all checkpoints are the work of one
recipe_run # finds the last checkpoint, and writes the manifest
