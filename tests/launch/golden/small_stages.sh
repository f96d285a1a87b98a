#!/bin/bash
# problems (problems.read_problems) of /shared/recipe.yaml
#SBATCH --job-name=run.problems
#SBATCH --chdir=/shared/run
#SBATCH --output=/shared/run/sbatch/logs/%x-%j.out
#SBATCH --open-mode=append
#SBATCH --partition=cpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
# shellcheck disable=SC1091,SC2016,SC2034,SC2154 # functions.sh reads and sets variables; what is in single quotes is for another shell
set -uo pipefail
early=
trap 'early=yes' USR1 TERM # a signal that comes before `begin`

[...]

run srun --nodes=1 --ntasks=1 --overlap --export=ALL,PYTHONNOUSERSITE=1,NVIDIA_VISIBLE_DEVICES=void,MELLANOX_VISIBLE_DEVICES=void --container-image=/i/openmath.sqsh '--container-mounts=/a b:/a b' --container-workdir="$PWD" --container-env=PYTHONPATH \
  openmath recipe run /shared/recipe.yaml --output /shared/run --only problems
run srun --nodes=1 --ntasks=1 --overlap --export=ALL,PYTHONNOUSERSITE=1,NVIDIA_VISIBLE_DEVICES=void,MELLANOX_VISIBLE_DEVICES=void --container-image=/i/openmath.sqsh '--container-mounts=/a b:/a b' --container-workdir="$PWD" --container-env=PYTHONPATH \
  openmath recipe run /shared/recipe.yaml --output /shared/run --only threads
