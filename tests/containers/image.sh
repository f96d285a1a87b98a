#!/usr/bin/env bash
# Builds the Dockerfile on a local base image and runs the smoke recipe in it as clusters start containers: as root, as
# a user without a name, with a root that is read-only, without a home. By hand: `make image-test`, 10 minutes on
# idle cores, 6 GB.
#   tests/containers/image.sh [FOLDER]     scratch space, removed at the end (KEEP=1 keeps it); /tmp/openmath-image
# Needs root, debootstrap, buildah and podman. PODMAN_OPTIONS: further options of podman, such as
# "--runtime runc --cgroup-manager cgroupfs" where there is no systemd. BUILD_OPTIONS: of buildah build.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-/tmp/openmath-image}
mkdir -p "$folder/runs"

# Storage of its own: the machine's images stay as they are.
cat >"$folder/storage.conf" <<CONF
[storage]
driver = "${STORAGE_DRIVER:-overlay}"
runroot = "$folder/storage/run"
graphroot = "$folder/storage/graph"
CONF
export CONTAINERS_STORAGE_CONF=$folder/storage.conf
clean() {
  [ -n "${KEEP:-}" ] && return
  podman system reset --force >/dev/null 2>&1 || true
  rm -rf "$folder"
}
trap clean EXIT

tests/containers/base.sh "$folder" 2>&1 | grep -v CNI
# shellcheck disable=SC2086 # options are words
buildah build --network host --isolation chroot --format docker ${BUILD_OPTIONS:-} --build-arg BASE=localhost/openmath-base \
  --build-arg COMMIT="$(git rev-parse HEAD)" --tag localhost/openmath . >"$folder/build.log" 2>&1 || { tail -n 30 "$folder/build.log"; exit 1; }
grep -E "^(changed:|this image has no)" "$folder/build.log"
buildah inspect --type image --format 'labels: {{.OCIv1.Config.Labels}}' localhost/openmath
echo

container() { # container OPTION ... IMAGE COMMAND ...: without a network, and with limits that a container may set here
  # shellcheck disable=SC2086
  podman ${PODMAN_OPTIONS:-} run --rm --network none --passwd=false --ulimit nofile=1024:"$(ulimit -Hn)" --ulimit nproc=4096 "$@"
}

smoke() { # smoke NAME OPTION ...: the recipe from the first stage to the report
  local name=$1 began=$SECONDS runs=$folder/runs/$1
  shift
  mkdir -p "$runs"
  chmod 777 "$runs"
  if container --volume "$runs:/workspace/runs" "$@" localhost/openmath \
    openmath recipe run /opt/openmath/examples/smoke.yaml --output runs/smoke >"$folder/$name.log" 2>&1; then
    echo "smoke, $name: done in $((SECONDS - began)) s; $*"
  else
    echo "smoke, $name: FAILED; $*"
    tail -n 5 "$folder/$name.log"
    return 1
  fi
}

smoke root --user 0:0
smoke user --user 12345:12345
smoke read-only --user 12345:12345 --read-only --tmpfs /tmp:exec
smoke no-home --user 12345:12345 --read-only --tmpfs /tmp:exec --env HOME=/nonexistent --cap-drop all --security-opt no-new-privileges
for name in user read-only no-home; do
  python3 tests/containers/same_results.py "$folder/runs/root/smoke" "$folder/runs/$name/smoke"
done

echo "nothing that can be written:"
code=0
container --user 12345:12345 --read-only --read-only-tmpfs=false localhost/openmath openmath recipe stages || code=$?
[ "$code" -eq 2 ]
echo "/tmp that runs nothing, as Docker's --tmpfs /tmp:"
container --user 12345:12345 --read-only --read-only-tmpfs=false --tmpfs /tmp:noexec,mode=1777 localhost/openmath openmath recipe stages >/dev/null
