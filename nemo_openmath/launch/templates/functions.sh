# shellcheck shell=bash disable=SC2154 # the variables named here are set by the scripts that read this file
# What every job of a run does: it says in a journal what happens to it, saves when it is asked to leave, and decides,
# when its work ends with an error, whether it is queued again. Yours to read and to change: launch copies it to
# RUN/sbatch, and each script there reads it. Nodes need bash, coreutils, awk, sed, grep and Slurm; no Python.
#
# A script sets these variables, then says `begin`, and starts its work by `run COMMAND ...`:
#   output            folder of the run
#   name              name of the job, which is that of its (first) stage
#   stages            array: the stages that it works on
#   warn_seconds      how long before the time limit it is asked to save
#   hang_seconds      after so long without a heartbeat its processes are stopped, and are killed; 0: never
#   retries           how often a machine's fault may end this job (each task of an array) until it has failed
#   run_retries       how often a machine's fault may end any job of the run
#   fruitless_leaves  how often in a row it may be asked to leave without having saved anything new
#   suspect_after     how many faults that name a node without certainty make it a suspect
#   notify_command    may be empty: what tells somebody that the job has failed
#   requeue           "scontrol", or "chain": submit the job anew, at sites that do not allow scontrol requeue
#
# Files, all in RUN/sbatch: journal/NAME[.TASK].jsonl, a line an event; suspects, a line a node that no job of this run
# gets again; submitted.jsonl; faults.txt, by which a machine's fault is told from a mistake; logs/.

begin() { # the time limit, the signals, the journal
  job=$SLURM_JOB_ID task=
  if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then # by its plain id, Slurm may mean all tasks of the array
    job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID task=$SLURM_ARRAY_TASK_ID
  fi
  journal=$output/sbatch/journal/$name${task:+.$task}.jsonl
  asked='' decided='' step='' hung='' unwritten='' helper='' started=$(date +%s)
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # since Slurm 22.05 srun does not take it from sbatch
  mkdir -p "${journal%/*}"

  # Logs are appended to at each attempt: what is there now is of earlier ones.
  log=$(readlink -f "/proc/$$/fd/1")
  declare -gA log_begin=()
  local file
  for file in "$log" "${log%.out}"-*.out; do
    [ ! -f "$file" ] || log_begin[$file]=$(stat -c %s "$file")
  done

  local attempts spent open fruitless
  progress=$(saved_so_far)
  read -r attempts spent open fruitless < <(attempts_of "$journal")
  attempt=$((attempts + 1)) spent=$((spent + open))
  trap 'ended $?' EXIT
  trap 'leave_soon "time limit"' USR1 # by --signal, warn_seconds before the limit
  trap 'leave_soon preemption' TERM   # or scancel
  record start nodes="$SLURM_JOB_NODELIST" restarts:="${SLURM_RESTART_COUNT:-0}" log="$log" progress="$progress"
  echo "--- attempt $attempt of $name: job $job on $SLURM_JOB_NODELIST, $(date '+%F %T')" # jobs logs --attempt looks for it
  if [ -n "${early:-}" ]; then leave_soon "before it had begun"; fi

  # An attempt that left no line of its end was killed with its node. It may have been the reason.
  if [ "$open" -eq 1 ] && [ "$spent" -gt "$retries" ]; then
    fail "killed from outside or by a fault $spent times (retries: $retries)"
  fi
  if [ "$fruitless" -ge "$fruitless_leaves" ]; then
    fail "asked to leave $fruitless times, and nothing new was saved in between: give it more time, or let it save more often"
  fi
  # The limit that Slurm gives, be it of the partition or of SBATCH_TIMELIMIT: with one that is not above warn_seconds
  # the job would be queued again for ever.
  local limit
  limit=$(scontrol --oneliner show job "$job" | sed -n '1s/.* TimeLimit=\([-0-9:]*\) .*/\1/p')
  if [ -n "$limit" ] && [ "$(seconds_of "$limit")" -le "$warn_seconds" ]; then
    echo "$name has $limit, not above warn_seconds ($warn_seconds): write a longer time, or lower warn_seconds" >&2
    exit 2
  fi
}

end_where_stopped() { # end_where_stopped DECISION ...: ends the job well where one of these stages has ended the loop
  local gate
  for gate in "$@"; do
    if [ -e "$output/$gate/manifest.json" ] && [ -e "$output/$gate/stop.txt" ]; then
      echo "$name is not needed: the loop ended with $gate: $(cat "$output/$gate/stop.txt")"
      exit 0
    fi
  done
}

run() { # run COMMAND ...: as a step that can be asked to leave. A failure ends the job.
  [ -z "$asked" ] || leave 75
  "$@" &
  step=$!
  watch_heartbeat "$step" &
  local code watcher=$!
  wait "$step"
  while kill -0 "$step" 2>/dev/null; do wait "$step"; done # a signal interrupts wait
  wait "$step"
  code=$?
  step=
  kill "$watcher" 2>/dev/null
  wait "$watcher"
  [ $? -ne 76 ] || hung="no heartbeat for $hang_seconds s"
  [ "$code" -eq 0 ] || leave "$code"
}

leave() { # leave CODE: ends the job; what becomes of it is decided by `ended`
  exit "$1"
}

fail() { # fail REASON: ends the job for good
  verdict=$1
  echo "$name: $1" >&2
  exit 1
}

address_of() { # address_of NODE: its IPv4 address where the name has one, else the name that Slurm uses
  local name address
  name=$(scontrol show node "$1" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
  address=$(getent ahostsv4 "$name" 2>/dev/null | awk 'NR == 1 { print $1 }')
  [[ $address != 127.* ]] || address='' # a node may have its own name for its loopback, where no other finds it
  echo "${address:-${name:-$1}}"
}

# --- Asked to leave ---------------------------------------------------------------------------------------------------

leave_soon() { # leave_soon WHY: a signal came
  if [ -z "$asked" ]; then
    asked=$1
    record asked why="$1"
    # Time must be left for being queued again: who has not saved until then is killed.
    (sleep $((warn_seconds * 4 / 5)) && kill_steps "$step") &
    helper=$!
  elif [[ $asked == "time limit" && $(state_of_job) == *TimeLimit ]]; then
    leave 137 # it is over, and whoever has not ended cannot be waited for
  fi
  # Passed on as SIGUSR1: srun answers SIGTERM by killing its tasks.
  [ -z "$step" ] || kill -USR1 "$step" 2>/dev/null
  [ "$1" = "time limit" ] || decided_by_slurm
}

decided_by_slurm() { # whether Slurm has ended the job already; written down at once, for this script will be killed soon
  local state='' restarts='' why='' i
  [ -z "$decided" ] || return 0
  for i in {1..30}; do # the controller may be away for a while
    read -r state restarts why < <(state_of_job)
    [ -z "$state" ] || break
    sleep 10
  done
  if [ "$state" = RUNNING ] || [ "$why" = TimeLimit ]; then
    return 1
  elif [ "${restarts:-0}" -gt "${SLURM_RESTART_COUNT:-0}" ]; then
    decided="queued again"
    record end code:=143 decision="$decided" reason="from outside: preemption, scontrol requeue, or a node that failed" costs:=0
  else
    decided=failed
    record end code:=143 decision="$decided" reason=cancelled costs:=0
  fi
}

watch_heartbeat() { # watch_heartbeat PROCESS: exits with 76 once it has killed the steps of a stage that hangs
  # Who can, ends itself with 76, and writes the stacks of its threads. This is for processes that cannot, because they
  # are stopped, or stuck in the kernel: then the files in RUN/STAGE/.heartbeat, which a thread rewrites every few
  # seconds, do not change any more. Looks are counted, not the clock: a job that is suspended is not killed.
  local first last='' now idle=0 tick=$((hang_seconds < 60 ? hang_seconds / 6 + 1 : 10))
  [ "$hang_seconds" -gt 0 ] || return 0
  first=$(newest_heartbeat)
  while sleep "$tick"; kill -0 "$1" 2>/dev/null; do
    now=$(newest_heartbeat)
    idle=$((idle + tick))
    [ "$now" = "$last" ] || idle=0
    last=$now
    # Without one it has not begun, has ended, or writes none.
    if [ -n "$now" ] && [ "$now" != "$first" ] && [ "$idle" -ge "$hang_seconds" ]; then
      trap '' TERM # of `run`, once the step has ended
      echo "$name: no heartbeat for $idle s: its processes are killed" >&2
      kill_steps "$1"
      exit 76
    fi
  done
}

newest_heartbeat() { # the time of the newest one; a task of an array looks at its own
  local stage mine='*'
  [ -z "$task" ] || mine=$(printf '%05d-of-*' "$task")
  for stage in "${stages[@]}"; do
    find "$output/$stage/.heartbeat" -name "$mine" -type f -printf '%T@\n' 2>/dev/null
  done | sort -n | tail -n 1
}

kill_steps() { # kill_steps [SRUN]: all that srun has started in this job; scancel may fail, and is repeated
  local i
  for i in {0..20}; do
    if [ $((i % 5)) -eq 0 ]; then
      squeue --steps --noheader --jobs="$job" --format=%i | grep '\.[0-9]*$' | xargs -r scancel --signal=KILL 2>/dev/null
    fi
    [ -n "${1:-}" ] && kill -0 "$1" 2>/dev/null || return 0
    sleep 1
  done
  kill -KILL "$1" # it waits for processes that cannot be killed, because they wait for a dead disk
}

release_nodes() { # all but the first: what is left to do needs one. When the job is queued again, it gets all of them
  local folder
  [ ${#nodes[@]} -gt 1 ] && folder=$(mktemp -d) || return 0
  if (cd "$folder" && scontrol update JobId="$job" NumNodes=1 >/dev/null); then
    # shellcheck source=/dev/null
    source "$folder/slurm_job_${SLURM_JOB_ID}_resize.sh" # what srun must know
  fi
  rm -rf "$folder"
}

# --- The end ----------------------------------------------------------------------------------------------------------

ended() { # ended CODE, by the trap of EXIT: decides what becomes of the job, writes it down, and does it
  [ "$BASHPID" = "$$" ] || return "$1" # a helper in the background that is killed runs the trap, too
  local code=$1 reason='' wait_seconds=0 class='' named=''
  trap '' USR1 TERM
  [ -z "$helper" ] || kill "$helper" 2>/dev/null
  [ -z "$hung" ] || code=76
  if [ "$code" -eq 0 ] && [ -z "$decided" ]; then
    end 0 "done" ''
  fi
  if decided_by_slurm; then
    echo "$name: $decided by Slurm, or by hand" >&2
    exit "$code"
  fi
  if [ -n "${verdict:-}" ]; then
    end "$code" failed "$verdict"
  fi

  judge "$code" # sets class and reason
  case $class in
    saved)
      again "$code" 0 "$reason" 0
      ;;
    mistake)
      end "$code" failed "$reason"
      ;;
    *)
      [ "$class" != node ] || suspect 1 "$reason"
      [ "$class" != unclear ] || suspect "$suspect_after" "$reason"
      local attempts spent run_spent rest
      read -r attempts spent rest < <(attempts_of "$journal")
      run_spent=$(attempts_of "$output"/sbatch/journal/*.jsonl | awk '{ print $2 }')
      if [ "$spent" -ge "$retries" ]; then
        end "$code" failed "$reason; that was retry $spent of $retries" 1
      elif [ "$run_spent" -ge "$run_retries" ]; then
        end "$code" failed "$reason; the run's retries are used up ($run_retries)" 1
      fi
      [ "$class" != anywhere ] || wait_seconds=$((spent < 3 ? 60 << spent : 300)) # a full disk is not emptied in a second
      again "$code" 1 "$reason" "$wait_seconds"
      ;;
  esac
}

judge() { # judge CODE: sets class (saved, late, mistake, node, unclear, anywhere), reason, and the nodes that are named
  local code=$1 said codes told=''
  said=$(last_words)
  # srun's own code is the largest of its tasks': a task that says 2 hides behind one that says 76.
  codes=" $code $(failed_tasks | awk '{ printf "%s ", $1 }')"
  class=unclear
  if [[ $codes == *" 2 "* ]]; then
    class=mistake reason="exit code 2, wrong input: $said"
  elif [[ $codes == *" 3 "* ]]; then
    class=mistake reason="exit code 3, some items failed: $said"
  elif [[ -n $hung || $codes == *" 76 "* ]]; then
    class=node reason="hang: ${hung:-$said}"
  elif [ -n "${serverless:-}" ] && [ -z "$asked" ]; then # ended by servers.sh
    if [ ${#servers_inside[@]} -gt 0 ]; then
      reason="its server has ended for good: $said"
    else # a pool, whose own retries are used up
      class=mistake reason=$(attempt_log | grep -a '^all servers of .* have ended' | tail -n 1)
    fi
  elif [ "$code" -eq 75 ] || [[ -n $asked && $code =~ ^(138|143)$ ]]; then # by the signal itself: it had just begun
    class=saved reason="saved: ${asked:-on request}"
  elif fault; then
    reason="$reason: $said"
  elif [ -n "$unwritten" ] || ! room; then
    class=anywhere reason="nothing can be written to $output (exit code $code): $said"
  elif [ -n "$asked" ]; then
    class=late reason="not saved before it had to leave (exit code $code): $said"
  elif [[ $codes == *" 77 "* ]]; then
    reason="exit code 77, the machine failed: $said"
  elif [ "$code" -gt 128 ] && [ "$code" -lt 160 ]; then
    reason="killed by signal $((code - 128)): $said"
  else
    class=mistake reason="exit code $code: $said"
  fi
  named=$(nodes_named)
}

attempt_log() { # what this attempt wrote: its own log, and those of the servers in it. Nothing here needs a full disk
  local file
  for file in "$log" "${log%.out}"-*.out; do
    [ ! -f "$file" ] || tail -c "+$((${log_begin[$file]:-0} + 1))" "$file" | tail -c 20000000
  done
}

last_words() { # the line that says most: the last of openmath, else the last that is not Slurm's
  attempt_log | tr -d '\0' | awk '
    /^([0-9]+: )?openmath: / { ours = $0 }
    !/^(srun: |slurmstepd|scancel: |--- attempt |.*\/functions\.sh: line |\[[0-9]+\][-+ ] |[0-9]+: *$|$)/ { last = $0 }
    END { print substr(ours ? ours : last, 1, 600) }' | tr -d '\200-\377' # JSON is UTF-8, and a log may hold anything
}

failed_tasks() { # lines "CODE NODES" of the tasks of which srun said how they failed
  attempt_log | sed -n -E \
    -e 's/^srun: error: ([^ :]+): tasks? [^:]*: Exited with exit code ([0-9]+).*/\2 \1/p' \
    -e 's/^srun: error: ([^ :]+): tasks? [^:]*: (Killed|Aborted|Segmentation fault|Bus error).*/137 \1/p'
}

fault() { # sets class and reason by the first pattern of faults.txt that the log matches; fails where none does
  local line section='' why='' others peers=()
  while IFS= read -r line; do
    case $line in
      '') ;;
      '# '*) why=${line#\# } ;;
      '['*']') section=${line//[\[\]]/} ;;
      *)
        attempt_log | LC_ALL=C grep -a -E -e "$line" >/dev/null || continue # no -q: it would break the pipe
        class=$section reason=$why told=$line
        [ "$section" = peer ] || return 0
        peers+=(-e "$line")
        ;;
    esac
  done <"$output/sbatch/faults.txt"
  # A lost connection is the end of a peer. Where another error is told, that one counts.
  [ ${#peers[@]} -gt 0 ] || return 1
  class=unclear
  others=$(attempt_log | grep -a -E 'Error: |openmath: ' | grep -v -E "${peers[@]}")
  [ -z "$others" ]
}

room() { # whether the run's disk takes anything
  local probe=$output/sbatch/journal/.probe-$SLURM_JOB_ID code
  head -c 65536 /dev/zero 2>/dev/null >"$probe"
  code=$?
  rm -f "$probe"
  return "$code"
}

# --- Nodes ------------------------------------------------------------------------------------------------------------

nodes_named() { # the nodes that are to blame, a line each, by what the ranks or srun say; none where all would be
  local stage rank blamed='' per_node=${SLURM_NTASKS_PER_NODE:-1}
  if [ ${#nodes[@]} -eq 1 ]; then
    echo "${nodes[0]}"
    return
  fi
  for stage in "${stages[@]}"; do # the ranks' own watchdog
    if [ -n "$(find "$output/$stage/suspect-ranks.json" -newermt "@$started" 2>/dev/null)" ]; then
      for rank in $(grep -o '"rank": *[0-9]*' "$output/$stage/suspect-ranks.json" | tr -dc '0-9\n'); do
        blamed+=" ${nodes[rank / per_node]:-}" # as srun deals out the ranks: node by node
      done
    fi
  done
  if [ -z "$blamed" ] && [ "$class" = node ] && [ -n "$told" ]; then # the ranks that told of the fault of hardware
    for rank in $(attempt_log | grep -a -E -e "$told" | grep -o -i -E 'rank ?[0-9]+' | tr -dc '0-9\n' | sort -u); do
      blamed+=" ${nodes[rank / per_node]:-}"
    done
  fi
  if [ -z "$blamed" ]; then # the nodes of tasks that ended by a signal, else by 77, else by any code but "saved" and "hung"
    blamed=$(failed_tasks | awk '
      { weight = $1 > 128 ? 3 : $1 == 77 ? 2 : $1 == 75 || $1 == 76 ? 0 : 1 }
      weight > most { most = weight; all = "" }
      weight == most && weight { all = all " " $2 }
      END { print all }')
  fi
  [ -n "$blamed" ] || return 0
  # shellcheck disable=SC2086
  scontrol show hostnames "$(printf '%s\n' $blamed | paste -sd ,)" | sort -u |
    awk -v count="${#nodes[@]}" '{ line[NR] = $0 } END { if (NR < count) for (i = 1; i <= NR; i++) print line[i] }'
}

suspect() { # suspect AFTER REASON: marks the named nodes; from AFTER marks on, no job of this run gets one
  local node marks id directory file=$output/sbatch/suspects
  for node in $named; do
    record suspect node="$node" reason="$2"
    marks=$(cat "$output"/sbatch/journal/*.jsonl | grep -c "\"event\":\"suspect\".*\"node\":\"$node\"")
    if [ "$marks" -ge "$1" ] && ! grep "^$node " "$file" >/dev/null 2>&1; then
      append "$file" "$node $(date +%s) $2"$'\n'
      echo "$name: $node is a suspect: $2" >&2
    fi
  done
  while read -r id directory; do # those of this run that wait
    [ "$directory" != "$output" ] || exclude "$id"
  done < <(squeue --noheader --user="$(id -un)" --states=PENDING --format='%A %Z')
}

nodes_of_pools() { # of all of the run
  local script all=0 jobs
  for script in "$output"/sbatch/server.*.sh; do
    [ -f "$script" ] || continue
    jobs=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' "$script")
    all=$((all + (${jobs:-0} + 1) * $(sed -n 's/^#SBATCH --nodes=//p' "$script")))
  done
  echo "$all"
}

exclude() { # exclude JOB [COUNT OF NODES]: it gets no suspect: the newest only, where else too few nodes would be left for it
  local partition excluded count usable bad all=$output/sbatch/suspects
  [ -s "$all" ] || return 0
  read -r partition excluded count < <(scontrol --oneliner show job "$1" |
    sed -n '1s/.* Partition=\([^ ]*\) .* ExcNodeList=\([^ ]*\) .* NumNodes=\([0-9]*\).*/\1 \2 \3/p')
  [ -n "${count:-}" ] || return 0
  count=$((${2:-$count} + $(nodes_of_pools))) # who asks a pool must run beside it
  usable=$(sinfo --noheader --Node --partition="$partition" --format='%N %t' |
    awk '$2 !~ /down|drain|fail|boot|maint/ { print $1 }' | sort -u | paste -sd ' ')
  bad=$({
    # nodes of the user's own --exclude stay
    [[ $excluded == *null* ]] || scontrol show hostnames "$excluded" | awk -v all="$all" '
      BEGIN { while ((getline line <all) > 0) { split(line, word, " "); suspect[word[1]] = 1 } }
      !($1 in suspect) { print $1, "own" }'
    tac "$all"
  } | awk -v usable="$usable" -v count="$count" '
    BEGIN { left = split(usable, node, " "); for (i in node) is_usable[node[i]] = 1 }
    seen[$1]++ { next }
    $2 == "own" { print $1; left -= $1 in is_usable; next }
    !($1 in is_usable) { print $1; next }
    left > count { print $1; left-- }' | paste -sd ,)
  [ "$bad" = "$excluded" ] || scontrol update JobId="$1" ExcNodeList="$bad" 2>/dev/null
}

# --- Again ------------------------------------------------------------------------------------------------------------

again() { # again CODE COSTS REASON SECONDS: queues the job again, after SECONDS
  if [ "$requeue" != chain ]; then
    if scontrol requeue "$job"; then # Slurm sends SIGTERM, and SIGKILL after KillWait (30 s): what follows is short
      exclude "$job" ${#nodes[@]} # Slurm says one node, until the job has ended
      [ "$4" -eq 0 ] || scontrol update JobId="$job" StartTime="now+$4"
      end "$1" "queued again" "$3" "$2"
    fi
    echo "$name: scontrol requeue is refused: the job is submitted anew" >&2
  fi
  hand_on "$@"
}

hand_on() { # hand_on CODE COSTS REASON SECONDS: submits the script anew; who waited for this job waits for the new one
  local next code
  # The variables of this job are not those of the next. It must not begin before this one has ended.
  # shellcheck disable=SC2046
  next=$(env $(compgen -e SLURM_ | grep -v '^SLURM_CONF$' | sed 's/^/-u /') sbatch --parsable --dependency="afterany:$job" \
    ${task:+--array="$task"} --begin="now+$4" "$output/sbatch/$name.sh")
  next=${next%%;*}
  [ -n "$next" ] || end "$1" failed "$3; and it could not be submitted anew" "$2"
  exclude "$next"
  lock # of an array, several tasks may do this at a time
  submitted "$name" "$next" "$task"
  dependents_wait_for "$next"
  code=$?
  unlock
  [ "$code" -ne 0 ] || end "$1" "handed on" "$3" "$2" "$next"
  scancel "$next"
  end "$1" failed "$3; and the jobs behind it could not be made to wait for job $next" "$2"
}

dependents_wait_for() { # dependents_wait_for JOB: whoever waits for this job waits for that one, too, and in the same way
  local id waits longer i
  while read -r id waits; do
    [ "$id" != "$1" ] || continue # it waits for this one's end
    longer=$(echo "$waits" | sed 's/([^)]*)//g; s/_\*//g' | awk -v old="${SLURM_ARRAY_JOB_ID:-$job}" -v new="$1" '{
      all = $0
      count = split($0, clause, /[,?]/)
      for (i = 1; i <= count; i++)
        if (clause[i] ~ ":" old "(_[0-9]+)?$") { sub(/:.*/, "", clause[i]); all = all (/\?/ ? "?" : ",") clause[i] ":" new }
      if (all != $0) print all
    }')
    [ -n "$longer" ] || continue
    for i in 1 2 3 4 5; do
      scontrol update JobId="$id" Dependency="$longer" && continue 2
      sleep "$i"
    done
    return 1
  done < <(squeue --noheader --user="$(id -un)" --states=PENDING --format='%A %E')
}

lock() { # a folder: to make one is atomic on every file system. One that is a minute old was left behind
  local i
  for i in {1..60}; do
    ! mkdir "$output/sbatch/.lock" 2>/dev/null || return 0
    sleep 1
  done
}

unlock() {
  rmdir "$output/sbatch/.lock" 2>/dev/null
}

# --- What is written down ---------------------------------------------------------------------------------------------

end() { # end CODE DECISION REASON [COSTS] [NEXT]: the last line of this attempt
  local i
  [ "$2" = "done" ] || echo "$name: $2 (exit code $1)${3:+: $3}" >&2
  record end code:="$1" decision="$2" reason="$3" costs:="${4:-0}" next="${5:-}"
  if [ -n "$unwritten" ]; then # a full disk may have room again in a moment; the decision stands in any case
    printf '%s' "$unwritten" | tee -a "${SLURM_TMPDIR:-/tmp}/openmath-$SLURM_JOB_ID.jsonl" >&2
    for i in {1..10}; do
      sleep 2
      ! write_journal || break
    done
  fi
  [ "$2" != failed ] || notify failed "$3"
  [ "$2" != "handed on" ] || exit 0 # who waits for this job waits for the next one, too
  exit "$1"
}

notify() { # notify STATE REASON: the command of the cluster file; its failure is none of the job's
  [ -n "${notify_command:-}" ] || return 0
  OPENMATH_STATE=$1 OPENMATH_REASON=$2 OPENMATH_RUN=$output OPENMATH_JOB=$name OPENMATH_JOB_ID=$job OPENMATH_LOG=$log \
    timeout 60 bash -c "$notify_command" || echo "$name: the command of notify failed (exit code $?)" >&2
}

record() { # record EVENT NAME=TEXT NAME:=NUMBER ...: a line of the journal
  unwritten+=$(json time:="$(date +%s)" event="$1" id="$SLURM_JOB_ID" attempt:="$attempt" "${@:2}")$'\n'
  write_journal
}

write_journal() { # what could not be written stays for the next time
  append "$journal" "$unwritten" && unwritten=
}

append() { # append FILE TEXT: whole lines or nothing, also where the disk is full or an earlier line was cut
  local size
  size=$(stat -L -c %s "$1" 2>/dev/null) || size=0
  if [ "$size" -gt 0 ] && [ -n "$(tail -c 1 "$1")" ]; then
    set -- "$1" $'\n'"$2"
  fi
  printf '%s' "$2" 2>/dev/null >>"$1" && return 0
  [ ! -f "$1" ] || truncate -s "$size" "$1"
  return 1
}

json() { # json NAME=TEXT NAME:=NUMBER ...: an object in a line. Texts lose control characters, and those that are empty
  local word text out=
  for word in "$@"; do
    if [[ ${word%%=*} == *: ]]; then
      out+=",\"${word%%:=*}\":${word#*:=}"
    elif [ -n "${word#*=}" ]; then
      text=${word#*=}
      text=${text//\\/\\\\}
      text=${text//\"/\\\"}
      out+=",\"${word%%=*}\":\"${text//[[:cntrl:]]/ }\""
    fi
  done
  printf '{%s}' "${out#,}"
}

submitted() { # submitted NAME ID [TASK]: a line of submitted.jsonl
  append "$output/sbatch/submitted.jsonl" "$(json job="$1" id="$2" task:="${3:-null}" time:="$(date +%s)")"$'\n'
}

attempts_of() { # attempts_of JOURNAL ...: attempts; faults that cost a retry; 1 if the last one was lost; fruitless leaves
  # Retries count from the last time the run was submitted. An attempt without an end was lost with its node, and costs
  # one, unless it had been asked to leave. Fruitless: attempts in a row that were asked to leave and saved nothing new.
  local file files=()
  for file in "$@"; do [ ! -f "$file" ] || files+=("$file"); done
  awk -v since="$(cat "$output/sbatch/since" 2>/dev/null || echo 0)" -v progress="$progress" '
    function field(key,   text) {
      text = $0
      if (!sub(".*\"" key "\":\"?", "", text)) return ""
      sub(/[",}].*/, "", text)
      return text
    }
    FNR == 1 { open = asked = fruitless = 0; last = "" }
    { event = field("event") }
    event == "start" { attempts++ }
    field("time") + 0 < since { next }
    event == "start" {
      if (open && !asked) spent++
      fruitless = asked && field("progress") == last ? fruitless + 1 : 0
      last = field("progress"); open = 1; asked = 0
    }
    event == "asked" { asked = 1 }
    event == "end" { open = 0; spent += field("costs"); asked = field("costs") + 0 == 0 }
    END { print attempts + 0, spent + 0, open && !asked, fruitless + (asked && last == progress) }
  ' "${files[@]-/dev/null}"
}

saved_so_far() { # a number that changes when the stages have saved something: checkpoints, else any file's size
  local stage folder
  for stage in "${stages[@]}"; do
    folder=$output/$stage
    if [ -d "$folder/checkpoints" ]; then
      (cd "$folder/checkpoints" && printf '%s\n' ./*)
    elif [ -d "$folder" ]; then
      find "$folder" -type f ! -path '*/.heartbeat/*' ! -name '*.lock' ! -name job.yaml ! -name plan.json ! -name seconds.json \
        ! -path '*/stacks/*' ! -name suspect-ranks.json -printf '%P %s\n' | sort
    fi
  done | cksum | cut -d ' ' -f 1
}

state_of_job() { # STATE RESTARTS REASON
  scontrol --oneliner show job "$job" |
    sed -n '1s/.* JobState=\([A-Z]*\) Reason=\([^ ]*\) .* Restarts=\([0-9]*\).*/\1 \3 \2/p'
}

seconds_of() { # seconds_of D-HH:MM:SS
  echo "$1" | awk -F '[-:]' '{ print (((NF > 3 ? $1 : 0) * 24 + $(NF-2)) * 60 + $(NF-1)) * 60 + $NF }' 
}
