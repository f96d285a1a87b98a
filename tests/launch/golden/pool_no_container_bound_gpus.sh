#!/bin/bash
# server.teacher (a pool that serves /models/teacher) of /shared/recipe.yaml
#SBATCH --job-name=run.server.teacher
#SBATCH --chdir=/shared/run
#SBATCH --output=/shared/run/sbatch/logs/%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
#SBATCH --gpus-per-task=4
#SBATCH --mem=0
#SBATCH --time=02:00:00
#SBATCH --array=0-1
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
# shellcheck disable=SC1091,SC2016,SC2034,SC2154 # functions.sh reads and sets variables; what is in single quotes is for another shell
set -uo pipefail
early=
trap 'early=yes' USR1 TERM # a signal that comes before `begin`

[...]

source "$output/sbatch/servers.sh"
serve() { # serve FOLDER: serves teacher; addresses are written there
  export OPENMATH_MODEL=/models/teacher OPENMATH_NAME=big
  export OPENMATH_FOLDER=$1 OPENMATH_FILE=${task:-0} OPENMATH_NUMBER=0
  export OPENMATH_NODES=1 OPENMATH_REPLICAS=2 OPENMATH_IS_GROUP=no
  export OPENMATH_GPUS=8 OPENMATH_NODE_GPUS=8 OPENMATH_GPU_OFFSET=0
  export OPENMATH_TENSOR_PARALLEL=4 OPENMATH_PIPELINE_PARALLEL=1
  export OPENMATH_MAX_MODEL_LEN='' OPENMATH_INTERFACE=auto
  export OPENMATH_START_SECONDS=3600 OPENMATH_RESTARTS=3
  server_addresses pool 1
  exec srun --nodes=1 --ntasks=2 --ntasks-per-node=2 --cpus-per-task=1 --overlap --kill-on-bad-exit=0 --wait=0 --gpus-per-task=4  \
    bash /shared/run/sbatch/serve.sh 'vllm serve "$MODEL" --served-model-name "$NAME" --host "$HOST" --port "$PORT" --generation-config vllm --enable-prompt-tokens-details --tensor-parallel-size 4'
}

clients=(asked asked2)
client_jobs=(asked asked2)
serve_clients serve "$output/sbatch/servers/"teacher
