#!/usr/bin/env bash
# Set up, then check everything: lint, types and tests. With arguments, only the tests that pytest is asked for.
#
#   launch/test.sh                     all of it
#   launch/test.sh -m "not slow"       pytest's arguments
#   launch/test.sh tests/algo -k kl
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${RLHF_RAY_VENV:-$checkout/.venv}

"$checkout/launch/setup.sh" --dev
export PATH=$venv/bin:$PATH # DeepSpeed looks for ninja there

cd "$checkout" # paths among the arguments are relative to it
if (($# > 0)); then exec pytest "$@"; fi
ruff check
ruff format --check
mypy
# Two processes, each test file in one of them: what starts clusters and engines waits much of its time.
in_two=(--numprocesses 2 --dist loadfile --no-loadscope-reorder)
pytest -m "not integration" "${in_two[@]}"
exec pytest -m integration "${in_two[@]}"
