#!/bin/bash
# judged (judging.judge) of /shared/recipe.yaml
#SBATCH --job-name=run.judged
#SBATCH --chdir=/shared/run
#SBATCH --output=/shared/run/sbatch/logs/%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=0
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
# shellcheck disable=SC1091,SC2016,SC2034,SC2154 # functions.sh reads and sets variables; what is in single quotes is for another shell
set -uo pipefail
early=
trap 'early=yes' USR1 TERM # a signal that comes before `begin`

[...]

source "$output/sbatch/servers.sh"

serve_0() { # serve_0 FOLDER: serves small; addresses are written there
  set +u # not every site's scripts can do without
  module purge
  module load cuda/12
  source /v/openmath/bin/activate
  set -u
  export OPENMATH_MODEL=/m/small OPENMATH_NAME=small
  export OPENMATH_FOLDER=$1 OPENMATH_FILE=${task:-0} OPENMATH_NUMBER=0
  export OPENMATH_NODES=1 OPENMATH_REPLICAS=1 OPENMATH_IS_GROUP=no
  export OPENMATH_GPUS=0 OPENMATH_NODE_GPUS=0 OPENMATH_GPU_OFFSET=0
  export OPENMATH_TENSOR_PARALLEL=1 OPENMATH_PIPELINE_PARALLEL=1
  export OPENMATH_MAX_MODEL_LEN='' OPENMATH_INTERFACE=auto
  export OPENMATH_START_SECONDS=3600 OPENMATH_RESTARTS=3
  server_addresses inside 1
  exec srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=2 --overlap --kill-on-bad-exit=0 --wait=0 --output=/shared/run/sbatch/logs/%x-%j-server.out --open-mode=append  \
    bash /shared/run/sbatch/serve.sh 'openmath serve "$MODEL" --name "$NAME" --host "$HOST" --port "$PORT" --start-seconds "$START_SECONDS"'
}

start_server serve_0 small /shared/run/sbatch/servers/judged."$SLURM_JOB_ID/"small \
  3600 "${log%.out}-server.out"
wait_for_address teacher /shared/run/sbatch/servers/teacher.2 14400 wait_seconds \
  '/shared/run/sbatch/logs/run.server.teacher.2-*.out' 'job server.teacher.2'
watch_pool teacher /shared/run/sbatch/servers/teacher.2 '/shared/run/sbatch/logs/run.server.teacher.2-*.out' server.teacher.2 &
watchers+=("$!")
run srun --nodes=1 --ntasks=1 --overlap  \
  openmath recipe run /shared/recipe.yaml --output /shared/run --only judged --servers /shared/run/sbatch/servers/judged.json
end_servers
