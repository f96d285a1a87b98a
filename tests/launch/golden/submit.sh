#!/bin/bash
# Submits the stages of /shared/recipe.yaml: each job waits until those that it reads from have succeeded.
set -Eeuo pipefail
output=/shared/run

# Inside of another job, what Slurm has set for that one must not reach these: memory and binding would contradict theirs.
for variable in $(compgen -e SLURM_); do
  case $variable in SLURM_CONF | SLURM_CLUSTERS) ;; *) unset "$variable" ;; esac
done

queued=$(squeue --user="$(id -un)" --noheader --format='%i %Z' |
  RUN=" $output" awk '{ id = $1; sub(/^[^ ]+/, "") } $0 == ENVIRON["RUN"] { print id }')
if [ -n "$queued" ]; then # two jobs must never write one stage
  echo "jobs of this run are queued already (${queued//$'\n'/ }): wait for them, or scancel them" >&2
  exit 2
fi

# shellcheck source=/dev/null
source "$output/sbatch/functions.sh" # submitted, exclude
date +%s >"$output/sbatch/since" # retries are counted from here
held=
[ ! -s "$output/sbatch/suspects" ] || held=yes # jobs wait until they are told which nodes to avoid

declare -A job
trap '[ -z "${job[*]}" ] || scancel "${job[@]}"' ERR # half a run is no use

# Of a pool that is an array, the first job must have begun.
declare -A first=([server.teacher]=_0 [server.R-1]=_0 [server.teacher.2]=_0 )

queue() { # queue JOB [OPTION ...]: submits its script
  local name=$1 id
  id=$(sbatch --parsable ${held:+--hold} "${@:2}" "$output/sbatch/$name.sh")
  job[$name]=${id%%;*}
  submitted "$name" "${job[$name]}"
  if [ -n "$held" ]; then
    exclude "${job[$name]}" || :
    scontrol release "${job[$name]}"
  fi
}

submit() { # submit JOB [EARLIER JOB ...] [-- POOL ...]: after the earlier jobs have succeeded and the pools have begun
  local name=$1 earlier needs=() kind=afterok
  shift
  for earlier in "$@"; do
    if [ "$earlier" = -- ]; then
      kind=after
    elif [ "$kind" = afterok ]; then
      needs+=("afterok:${job[$earlier]}")
    else
      needs+=("after:${job[$earlier]}${first[$earlier]-}")
    fi
  done
  queue "$name" ${needs[0]+--dependency="$(IFS=,; echo "${needs[*]}")" --kill-on-invalid-dep=yes}
  echo "${job[$name]} $name${*:+ after $*}"
}

submit_last() { # submit_last JOB [EARLIER JOB ...]: after all of them have ended, well or not
  local name=$1 earlier waits=''
  for earlier in "${@:2}"; do waits+=:${job[$earlier]}; done
  queue "$name" --dependency="afterany$waits"
  echo "${job[$name]} $name"
}

submit problems
submit server.teacher problems
submit asked problems -- server.teacher
submit asked2 asked -- server.teacher
submit server.R-1 asked2
submit solved asked2 -- server.R-1
submit train asked2
submit server.teacher.2 solved
submit judged solved -- server.teacher.2
submit counted judged
