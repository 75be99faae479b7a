#!/usr/bin/env bash
# Set up, then run the whole chain on this machine: demonstrations, comparisons, reward model, PPO, report.
#
#   launch/quickstart.sh [key.path=value ...]
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${RLHF_RAY_VENV:-$checkout/.venv}

"$checkout/launch/setup.sh"
cd "$checkout"
export PATH=$venv/bin:$PATH # DeepSpeed looks for ninja there
exec "$venv/bin/rlhf-ray" pipeline configs/quickstart.yaml "$@"
