#!/bin/bash
# One task of a step that serves a model: `srun ... serve.sh COMMAND`, in the server's container. It starts the command,
# writes where the server answers, watches it, and starts it again. It needs bash and coreutils alone.
# OPENMATH_* say what to do (servers.sh sets them). Exit codes: 75 asked to leave; 77 given up: it has died too often, or
# did not answer in time; anything else: it ended before it ever answered, and its output says why.
set -uo pipefail -m # -m: the server is a process group of its own, and is ended whole
command=$1
# shellcheck source=/dev/null
source "${BASH_SOURCE[0]%/*}/network.sh"

# Servers keep what they compile below the home, which is missing or read-only in most containers.
if [ ! -w "${HOME:-/nonexistent}" ]; then
  HOME=${TMPDIR:-/tmp}/openmath-$UID
  mkdir -m 700 "$HOME" 2>/dev/null
  [ -d "$HOME" ] && [ ! -L "$HOME" ] && [ -O "$HOME" ] || HOME=$(mktemp -d) # not one that somebody else has laid there
  export HOME
fi
id -un >/dev/null 2>&1 || export USER=${USER:-uid-$UID} # torch asks for the user's name, and fails without one

SILENT_SECONDS=60     # without an answer of /health: the server is started again
HEALTHY_SECONDS=600   # so long healthy: earlier failures do not count
CHECK_SECONDS=1       # between two questions
replica=0 rank=0
if [ "$OPENMATH_IS_GROUP" = yes ]; then # the tasks are one server, of which the first answers
  rank=$SLURM_PROCID
else
  replica=$SLURM_LOCALID
fi
export MODEL=$OPENMATH_MODEL NAME=$OPENMATH_NAME HOST=$OPENMATH_HOST MAX_MODEL_LEN=$OPENMATH_MAX_MODEL_LEN
export TENSOR_PARALLEL=$OPENMATH_TENSOR_PARALLEL PIPELINE_PARALLEL=$OPENMATH_PIPELINE_PARALLEL
export NODES=$OPENMATH_NODES NODE_RANK=$SLURM_NODEID HEAD=$OPENMATH_HEAD HEAD_PORT=$OPENMATH_HEAD_PORT
export GPUS=$((OPENMATH_GPUS / OPENMATH_REPLICAS)) PORT START_SECONDS=$OPENMATH_START_SECONDS
file=$OPENMATH_FOLDER/$OPENMATH_FILE.$replica # .url: where the server answers
server='' leaving=''
trap 'leaving=yes; withdraw' USR1 TERM INT

say() {
  echo "$(date +%T) $NAME${OPENMATH_REPLICAS:+, replica $replica of $OPENMATH_REPLICAS}: $1" >&2
}

pause() { # pause SECONDS: a signal ends it
  (trap '' USR1; exec sleep "$1") &
  wait $!
}

use_gpus() { # of this replica. Where Slurm has bound the task to its own, it sees no more than these.
  local all mine
  [ "$GPUS" -gt 0 ] || return 0
  IFS=, read -r -a all <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s , 0 $((OPENMATH_NODE_GPUS - 1)))}"
  [ ${#all[@]} -gt "$GPUS" ] && [ "$OPENMATH_IS_GROUP" = no ] || return 0
  mine=("${all[@]:OPENMATH_GPU_OFFSET + replica * GPUS:GPUS}")
  CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${mine[*]}")
  export CUDA_VISIBLE_DEVICES
}

answers() { # whether somebody listens on the port
  (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null
}

healthy() { # asked without a proxy, which would look for its own 127.0.0.1
  local status=''
  { exec 3<>"/dev/tcp/127.0.0.1/$PORT"; } 2>/dev/null || return 1
  printf 'GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&3
  read -r -t 10 status <&3
  exec 3>&-
  [[ $status == HTTP/*' 200'* ]]
}

publish() {
  [ ! -e "$file.url" ] || return 0
  { echo "http://$OPENMATH_ADDRESS:$PORT" >"$file.partial" && mv -f "$file.partial" "$file.url"; } 2>/dev/null # or later
}

withdraw() {
  rm -f "$file.url"
}

runs() {
  kill -0 "$server" 2>/dev/null
}

start() {
  PORT=$((20000 + (SLURM_JOB_ID * 37 + OPENMATH_NUMBER * 1000 + replica) % 20000))
  while answers; do PORT=$((PORT + 1)); done # another program's
  (trap '' USR1; exec bash -c "$command") & # Slurm sends USR1 to all processes of a step; the server gets TERM, later
  server=$!
}

end_server() { # and all that it has started
  local tries
  kill -TERM -- "-$server" 2>/dev/null
  for ((tries = 0; tries < 75; tries++)); do
    kill -0 -- "-$server" 2>/dev/null || break
    pause 0.2
  done
  kill -KILL -- "-$server" 2>/dev/null
  wait "$server"
}

leave() { # leave CODE
  withdraw
  end_server
  exit "$1"
}

until_healthy() { # fails where the server ends, or takes too long
  local began=$SECONDS
  until healthy; do
    [ -z "$leaving" ] || leave 75
    runs || return 1
    if [ $((SECONDS - began)) -ge "$START_SECONDS" ]; then
      say "no answer at http://127.0.0.1:$PORT/health within $START_SECONDS s (start_seconds): given up"
      leave 77
    fi
    pause 0.5
  done
}

watch() { # returns when the server has ended, or is silent for too long
  local seen=$SECONDS
  publish
  while runs; do
    pause "$CHECK_SECONDS"
    [ -z "$leaving" ] || leave 75
    if healthy; then
      seen=$SECONDS
      publish
    elif [ $((SECONDS - seen)) -ge "$SILENT_SECONDS" ]; then
      say "no answer of /health for $SILENT_SECONDS s"
      return
    elif [ $((SECONDS - seen)) -ge 10 ]; then
      withdraw
    fi
  done
}

withdraw
use_gpus
if [ "$NODES" -gt 1 ]; then
  read -r -a addresses <<<"$OPENMATH_ADDRESSES"
  export VLLM_HOST_IP=${addresses[NODE_RANK]} # else vLLM takes the address of the route to the internet
  [ -z "$OPENMATH_INTERFACE" ] || use_interface "$OPENMATH_INTERFACE" "$HEAD"
fi
start
if [ "$rank" -gt 0 ]; then # a part of a server: the first task watches it
  while runs; do
    pause 1
    [ -z "$leaving" ] || leave 75
  done
  wait "$server"
  say "the part on node $NODE_RANK of $NODES ended with exit code $?"
  exit 77
fi
if ! until_healthy; then
  end_server
  code=$?
  say "ended with exit code $code before it answered"
  exit $((code == 2 || code > 128 ? code : 1)) # 2: wrong input; other codes mean something else here
fi
failures=0
while :; do
  say "answers at http://$OPENMATH_ADDRESS:$PORT"
  began=$SECONDS
  watch
  withdraw
  if [ $((SECONDS - began)) -ge "$HEALTHY_SECONDS" ]; then failures=0; fi
  while :; do # until it answers again
    failures=$((failures + 1))
    end_server
    code=$?
    if [ "$failures" -gt "$OPENMATH_RESTARTS" ] || [ "$OPENMATH_IS_GROUP" = yes ]; then
      say "died (exit code $code); given up (restarts: $OPENMATH_RESTARTS)"
      exit 77
    fi
    say "died (exit code $code); started again ($failures of $OPENMATH_RESTARTS)"
    pause $((failures < 7 ? 1 << failures - 1 : 60))
    [ -z "$leaving" ] || leave 75
    start
    ! until_healthy || break
  done
done
