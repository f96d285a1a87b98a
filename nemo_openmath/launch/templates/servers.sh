# shellcheck shell=bash disable=SC2034,SC2154 # the variables are of the scripts that read this file
# Servers of models, on the side of the job's script: starting them, waiting for them, and ending a pool when nobody
# needs it. What runs beside the server itself is serve.sh.

server_addresses() { # server_addresses inside|pool COUNT: where the nodes of a server are, and where it listens
  local i
  OPENMATH_ADDRESSES=''
  for ((i = 0; i < $2; i++)); do OPENMATH_ADDRESSES+="$(address_of "${nodes[i]}") "; done
  OPENMATH_HEAD=${OPENMATH_ADDRESSES%% *}
  OPENMATH_HEAD_PORT=$((20000 + (SLURM_JOB_ID * 37 + 500 + SECONDS % 100) % 20000))
  if [ "$1" = inside ]; then # nobody else may ask it
    OPENMATH_ADDRESS=127.0.0.1 OPENMATH_HOST=127.0.0.1
  else
    OPENMATH_ADDRESS=$OPENMATH_HEAD OPENMATH_HOST=0.0.0.0
  fi
  export OPENMATH_ADDRESSES OPENMATH_HEAD OPENMATH_HEAD_PORT OPENMATH_ADDRESS OPENMATH_HOST
}

has_address() { # has_address FOLDER
  compgen -G "$1/*.url" >/dev/null
}

servers_inside=() watchers=() # processes

# --- Asking ------------------------------------------------------------------------------------------------------------

start_server() { # start_server STEP LABEL FOLDER SECONDS LOG: a server inside this job
  end_where_made
  mkdir -p "$3"
  rm -f "$3"/*.url # of an attempt that was killed
  "$1" "$3" &
  local server=$!
  servers_inside+=("$server")
  wait_for_address "$2" "$3" "$4" start_seconds "$5" "process $server"
  record ready url="$(cat "$3"/*.url 2>/dev/null | head -n 1)"
  (
    while kill -0 "$server" 2>/dev/null; do sleep 5; done
    echo "the server of $2 has ended for good: see $5" >&2
    kill -USR2 $$
  ) &
  watchers+=("$!")
}

end_servers() { # those inside this job, whose work is done
  [ ${#watchers[@]} -eq 0 ] || kill "${watchers[@]}" 2>/dev/null
  [ ${#servers_inside[@]} -gt 0 ] || return 0
  kill -USR1 "${servers_inside[@]}" 2>/dev/null
  wait "${servers_inside[@]}"
  rm -rf "$output/sbatch/servers/$name.$SLURM_JOB_ID"
}

serverless='' # whether a server that the stage asks has ended for good
trap 'serverless=yes; [ -z "$step" ] || kill -USR1 "$step" 2>/dev/null' USR2 # the stage saves and ends

wait_for_address() { # wait_for_address LABEL FOLDER SECONDS SETTING LOG "process ID"|"job NAME"
  local began=$SECONDS told=-60 look
  until has_address "$2"; do
    [ -z "$asked" ] || leave 75
    end_where_made
    look=${6%% *} # a process is looked at each second, the queue each minute
    if [ $((SECONDS - told)) -ge 60 ]; then
      told=$SECONDS look=process
      echo "waiting for a server of $1 ($2/*.url), since $((SECONDS - began)) s of $3 ($4); its log is $5" >&2
    fi
    if [ "$look" = process ] && ! is_there "$6" && ! has_address "$2"; then
      echo "the server of $1 ended before it answered: see $5" >&2
      exit 1
    fi
    if [ $((SECONDS - began)) -ge "$3" ]; then
      fail "no server of $1 answered within $3 s ($4): see $5"
    fi
    sleep 1 &
    wait $!
  done
}

watch_pool() { # watch_pool LABEL FOLDER LOG JOB: in the background; ends the stage where no server will come any more
  local missing=0
  while sleep 30; do
    if has_address "$2" || is_there "job $4"; then
      missing=0
    elif [ $((missing += 1)) -ge 3 ]; then # a job that is queued again is missing for a moment
      echo "all servers of $1 have ended: see $3" >&2
      kill -USR2 $$
      return
    fi
  done
}

# A job may be killed behind its last unit, and the other jobs of its array complete the stage: then the servers have
# ended, and none will come.
end_where_made() { # ends the job well where all its stages have been made since the launch
  if [ ${#stages[@]} -gt 0 ] && are_made "${stages[@]}"; then
    echo "$name: ${stages[*]} has been made by other jobs" >&2
    exit 0
  fi
}

is_there() { # is_there "process ID"|"job NAME": whether the server, or a job of the pool, may still come
  case $1 in
    process*) kill -0 "${1#* }" 2>/dev/null ;;
    *) [ "$(jobs_in_queue "${1#* }")" != 0 ] ;;
  esac
}

jobs_in_queue() { # jobs_in_queue NAME ...: how many jobs of this run with these names wait or run; ? where Slurm is away
  local queue
  queue=$(squeue --noheader --user="$(id -un)" --format='%j %Z') || { echo '?'; return; }
  local name count=0
  for name in "$@"; do
    count=$((count + $(grep -c -x -F -e "${output##*/}.$name $output" <<<"$queue")))
  done
  echo "$count"
}

# --- A pool ------------------------------------------------------------------------------------------------------------

serve_clients() { # serve_clients STEP FOLDER: serves until no client needs it. Reads: clients, client_jobs
  local code nap told='' finished='' unneeded=0 looked=$SECONDS
  mkdir -p "$2"
  ! are_made "${clients[@]}" || exit 0
  "$1" "$2" &
  step=$!
  while kill -0 "$step" 2>/dev/null; do
    sleep 3 &
    nap=$!
    wait "$nap" # a signal ends it; leave_soon has passed it on
    if [ -z "$told" ] && [ -e "$2/${task:-0}.0.url" ]; then
      told=yes
      record ready url="$(cat "$2/${task:-0}.0.url" 2>/dev/null)"
    fi
    [ -z "$asked$finished" ] || continue
    if are_made "${clients[@]}"; then
      finished=yes
    elif [ $((SECONDS - looked)) -ge 20 ]; then
      looked=$SECONDS
      # jobs that are queued again are missing for a moment
      if [ "$(jobs_in_queue "${client_jobs[@]}")" = 0 ]; then unneeded=$((unneeded + 1)); else unneeded=0; fi
      [ "$unneeded" -lt 3 ] || finished=yes
    fi
    if [ -n "$finished" ]; then
      echo "$name: nobody needs the server any more" >&2
      kill -USR1 "$step"
    fi
  done
  wait "$step"
  code=$?
  step=''
  rm -f "$2/${task:-0}".*.url
  if [ -n "$finished" ] || are_made "${clients[@]}"; then exit 0; fi
  leave $((code ? code : 77))
}

are_made() { # are_made STAGE ...: whether all of them have been made since the launch
  local stage
  for stage in "$@"; do
    [ "$output/$stage/manifest.json" -nt "$output/sbatch/jobs.json" ] || return 1
  done
}
