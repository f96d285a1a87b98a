#!/usr/bin/env bash
# The numeric part of the tests with other versions that pyproject.toml allows, each in an environment of its own under
# build/versions, which is kept; then a training saved with each is gone on with in each.
#
#   tests/versions.sh [NAME...]        oldest newest; both, where none is named
#
# Python 3.12 is needed; PyPI's torch brings CUDA: 3 GB of downloads and 6 GB of disk for each, 10 minutes for the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 PYTHONPATH=. PYTHONWARNINGS=ignore
declare -A VERSIONS=(
  [oldest]="torch==2.11.0 transformers==5.17.0 huggingface_hub<2 megatron-core==0.16.1"
  [newest]="torch==2.13.0 transformers==5.23.0 megatron-core==0.19.2"
)
NUMERIC=(tests/models tests/training/test_same_loss_at_every_layout.py tests/training/test_checkpoint_files.py tests/inference/test_embedded.py)
python=${PYTHON312:-python3.12}
"$python" -c pass 2>/dev/null || { echo "$python does not run: name one with PYTHON312=/path/to/python3.12"; exit 2; }
names=("$@")
[ $# -gt 0 ] || names=(oldest newest)

for name in "${names[@]}"; do
  folder=build/versions/$name
  if [ ! -e "$folder/.ready" ]; then
    "$python" -m venv "$folder"
    read -ra wanted <<<"${VERSIONS[$name]}"
    # The rest as constraints.txt has it.
    grep -vE '^(torch|transformers|huggingface_hub|megatron-core)==' constraints.txt >"$folder/constraints.txt"
    "$folder/bin/pip" install --quiet --constraint "$folder/constraints.txt" "${wanted[@]}" --editable '.[dev]'
    touch "$folder/.ready"
  fi
  echo "== $name: ${VERSIONS[$name]}"
  "$folder/bin/python" -m pytest -q "${NUMERIC[@]}"
done

trap 'rm -rf build/versions/exchange' EXIT
for writer in "${names[@]}"; do
  rm -rf build/versions/exchange && mkdir -p build/versions/exchange
  "build/versions/$writer/bin/python" -m tests.training.version_exchange write build/versions/exchange
  for reader in "${names[@]}"; do
    echo "== written by $writer, read by $reader"
    "build/versions/$reader/bin/python" -m tests.training.version_exchange read build/versions/exchange
  done
done
