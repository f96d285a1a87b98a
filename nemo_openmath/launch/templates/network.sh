# shellcheck shell=bash
# Which network interface the processes of a job use. Read inside containers: bash alone is needed.

interface_to() { # interface_to ADDRESS: the interface with the route to an IPv4 address, by the kernel's own table
  local a b c d address name destination mask rest bits best=-1 interface=''
  IFS=. read -r a b c d <<<"$1"
  [[ $a$b$c$d =~ ^[0-9]+$ ]] || return 1
  if [ "$a" -eq 127 ]; then # all nodes are one machine
    echo lo
    return
  fi
  address=$((d << 24 | c << 16 | b << 8 | a)) # as the table has it: the first byte is the lowest
  while read -r name destination rest rest rest rest rest mask rest; do
    if [ "$name" = Iface ] || (((address & 16#$mask) != 16#$destination)); then continue; fi
    for ((bits = 0, mask = 16#$mask; mask; mask &= mask - 1)); do ((bits += 1)); done
    if [ "$bits" -gt "$best" ]; then
      best=$bits interface=$name
    fi
  done </proc/net/route
  [ -z "$interface" ] || echo "$interface"
}

use_interface() { # use_interface NAME|auto ADDRESS: for gloo and NCCL, unless they are told another
  local name=$1
  if [ "$name" = auto ]; then
    name=$(interface_to "$2") || name=''
  fi
  if [ -n "$name" ]; then
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$name} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-=$name}
  fi
}
