#!/bin/bash
# judged (judging.judge) of /shared/recipe.yaml
#SBATCH --job-name=run.judged
#SBATCH --chdir=/shared/run
#SBATCH --output=/shared/run/sbatch/logs/%x-%j.out
#SBATCH --open-mode=append
#SBATCH --partition='$(touch x)'
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=3
#SBATCH --gres=gpu:2
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
# shellcheck disable=SC1091,SC2016,SC2034,SC2154 # functions.sh reads and sets variables; what is in single quotes is for another shell
set -uo pipefail
early=
trap 'early=yes' USR1 TERM # a signal that comes before `begin`

[...]

source "$output/sbatch/servers.sh"

serve_0() { # serve_0 FOLDER: serves teacher; addresses are written there
  export A='it'"'"'s "b"'
  export OPENMATH_MODEL=/models/teacher OPENMATH_NAME=big
  export OPENMATH_FOLDER=$1 OPENMATH_FILE=${task:-0} OPENMATH_NUMBER=0
  export OPENMATH_NODES=1 OPENMATH_REPLICAS=1 OPENMATH_IS_GROUP=no
  export OPENMATH_GPUS=1 OPENMATH_NODE_GPUS=2 OPENMATH_GPU_OFFSET=0
  export OPENMATH_TENSOR_PARALLEL=1 OPENMATH_PIPELINE_PARALLEL=1
  export OPENMATH_MAX_MODEL_LEN='' OPENMATH_INTERFACE=auto
  export OPENMATH_START_SECONDS=3600 OPENMATH_RESTARTS=3
  server_addresses inside 1
  exec srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=1 --overlap --kill-on-bad-exit=0 --wait=0 --output=/shared/run/sbatch/logs/%x-%j-server.out --open-mode=append --export=ALL,PYTHONNOUSERSITE=1 env ${A+APPTAINERENV_A="$A"} apptainer exec --nv --pwd "$PWD" /i/openmath.sif \
    bash /shared/run/sbatch/serve.sh 'serve "$MODEL" --port $PORT'
}

start_server serve_0 teacher /shared/run/sbatch/servers/judged."$SLURM_JOB_ID/"teacher \
  3600 "${log%.out}-server.out"

serve_1() { # serve_1 FOLDER: serves small; addresses are written there
  export A='it'"'"'s "b"'
  export OPENMATH_MODEL=/m/small OPENMATH_NAME=small
  export OPENMATH_FOLDER=$1 OPENMATH_FILE=${task:-0} OPENMATH_NUMBER=1
  export OPENMATH_NODES=1 OPENMATH_REPLICAS=1 OPENMATH_IS_GROUP=no
  export OPENMATH_GPUS=1 OPENMATH_NODE_GPUS=2 OPENMATH_GPU_OFFSET=1
  export OPENMATH_TENSOR_PARALLEL=1 OPENMATH_PIPELINE_PARALLEL=1
  export OPENMATH_MAX_MODEL_LEN='' OPENMATH_INTERFACE=auto
  export OPENMATH_START_SECONDS=3600 OPENMATH_RESTARTS=3
  server_addresses inside 1
  exec srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=1 --overlap --kill-on-bad-exit=0 --wait=0 --output=/shared/run/sbatch/logs/%x-%j-server.out --open-mode=append --export=ALL,PYTHONNOUSERSITE=1 env ${A+APPTAINERENV_A="$A"} apptainer exec --nv --pwd "$PWD" /i/openmath.sif \
    bash /shared/run/sbatch/serve.sh 'trtllm-serve "$MODEL" --host "$HOST" --port "$PORT" --tp_size 1'
}

start_server serve_1 small /shared/run/sbatch/servers/judged."$SLURM_JOB_ID/"small \
  3600 "${log%.out}-server.out"
run srun --nodes=1 --ntasks=1 --overlap --export=ALL,PYTHONNOUSERSITE=1 env ${PYTHONPATH+APPTAINERENV_PYTHONPATH="$PYTHONPATH"} ${A+APPTAINERENV_A="$A"} apptainer exec --nv --pwd "$PWD" /i/openmath.sif \
  openmath recipe run /shared/recipe.yaml --output /shared/run --only judged --servers /shared/run/sbatch/servers/judged.json
end_servers
