#!/bin/bash
# server.R-1 (a pool that serves /m/R 1) of /shared/recipe.yaml
#SBATCH --job-name=run.server.R-1
#SBATCH --chdir=/shared/run
#SBATCH --output=/shared/run/sbatch/logs/%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --account=serving
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --gpus-per-node=8
#SBATCH --mem=0
#SBATCH --time=01:00:00
#SBATCH --array=0-2
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
# shellcheck disable=SC1091,SC2016,SC2034,SC2154 # functions.sh reads and sets variables; what is in single quotes is for another shell
set -uo pipefail
early=
trap 'early=yes' USR1 TERM # a signal that comes before `begin`

[...]

source "$output/sbatch/servers.sh"
serve() { # serve FOLDER: serves R-1; addresses are written there
  export OPENMATH_MODEL='/m/R 1' OPENMATH_NAME='R 1'
  export OPENMATH_FOLDER=$1 OPENMATH_FILE=${task:-0} OPENMATH_NUMBER=0
  export OPENMATH_NODES=2 OPENMATH_REPLICAS=1 OPENMATH_IS_GROUP=yes
  export OPENMATH_GPUS=8 OPENMATH_NODE_GPUS=8 OPENMATH_GPU_OFFSET=0
  export OPENMATH_TENSOR_PARALLEL=8 OPENMATH_PIPELINE_PARALLEL=2
  export OPENMATH_MAX_MODEL_LEN=32768 OPENMATH_INTERFACE=auto
  export OPENMATH_START_SECONDS=3600 OPENMATH_RESTARTS=3
  server_addresses pool 2
  exec srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=1 --overlap --kill-on-bad-exit=1 --wait=0 --export=ALL,PYTHONNOUSERSITE=1 --container-image=/i/vllm.sqsh --container-workdir="$PWD" \
    bash /shared/run/sbatch/serve.sh 'vllm serve "$MODEL" --served-model-name "$NAME" --host "$HOST" --port "$PORT" --generation-config vllm --enable-prompt-tokens-details --max-model-len 32768 --tensor-parallel-size 8 --pipeline-parallel-size 2 --nnodes 2 --node-rank "$NODE_RANK" --master-addr "$HEAD" --master-port "$HEAD_PORT" --distributed-executor-backend mp $([ "$NODE_RANK" = 0 ] || echo --headless)'
}

clients=(solved)
client_jobs=(solved)
serve_clients serve "$output/sbatch/servers/"R-1
