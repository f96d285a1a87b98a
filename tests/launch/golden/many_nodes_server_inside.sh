#!/bin/bash
# solved (rollout.generate) of /shared/recipe.yaml
#SBATCH --job-name=run.solved
#SBATCH --chdir=/shared/run
#SBATCH --output=/shared/run/sbatch/logs/%x-%j.out
#SBATCH --open-mode=append
#SBATCH --partition='$(touch x)'
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --gres=gpu:8
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
# shellcheck disable=SC1091,SC2016,SC2034,SC2154 # functions.sh reads and sets variables; what is in single quotes is for another shell
set -uo pipefail
early=
trap 'early=yes' USR1 TERM # a signal that comes before `begin`

[...]

source "$output/sbatch/servers.sh"

serve_0() { # serve_0 FOLDER: serves R-1; addresses are written there
  export A='it'"'"'s "b"'
  export OPENMATH_MODEL='/m/R 1' OPENMATH_NAME='R 1'
  export OPENMATH_FOLDER=$1 OPENMATH_FILE=${task:-0} OPENMATH_NUMBER=0
  export OPENMATH_NODES=2 OPENMATH_REPLICAS=1 OPENMATH_IS_GROUP=yes
  export OPENMATH_GPUS=8 OPENMATH_NODE_GPUS=8 OPENMATH_GPU_OFFSET=0
  export OPENMATH_TENSOR_PARALLEL=16 OPENMATH_PIPELINE_PARALLEL=1
  export OPENMATH_MAX_MODEL_LEN='' OPENMATH_INTERFACE=auto
  export OPENMATH_START_SECONDS=3600 OPENMATH_RESTARTS=3
  server_addresses inside 2
  exec srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=1 --overlap --kill-on-bad-exit=1 --wait=0 --output=/shared/run/sbatch/logs/%x-%j-server.out --open-mode=append --export=ALL,PYTHONNOUSERSITE=1 env ${A+APPTAINERENV_A="$A"} apptainer exec --nv --pwd "$PWD" /i/openmath.sif \
    bash /shared/run/sbatch/serve.sh 'python3 -m sglang.launch_server --model-path "$MODEL" --served-model-name "$NAME" --host "$HOST" --port "$PORT" --tp-size 16 --nnodes 2 --node-rank "$NODE_RANK" --dist-init-addr "$HEAD:$HEAD_PORT"'
}

start_server serve_0 R-1 /shared/run/sbatch/servers/solved."$SLURM_JOB_ID/"R-1 \
  3600 "${log%.out}-server.out"
run srun --nodes=1 --ntasks=1 --overlap --relative=0 --export=ALL,PYTHONNOUSERSITE=1 env ${PYTHONPATH+APPTAINERENV_PYTHONPATH="$PYTHONPATH"} ${A+APPTAINERENV_A="$A"} apptainer exec --nv --pwd "$PWD" /i/openmath.sif \
  openmath recipe run /shared/recipe.yaml --output /shared/run --only solved --servers /shared/run/sbatch/servers/solved.json
end_servers
