#!/usr/bin/env bash
# Install what is missing, then train and test a baseline and its motion-prompted twin on a small
# generated data set, on the CPU. Arguments go to tools/quickstart.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh
exec "${VIRTUAL_ENV:-$PWD/.venv}/bin/python" tools/quickstart.py "$@"
