#!/usr/bin/env bash
# Install what is missing, then check everything: lint, format, types, tests.
# Arguments go to pytest: bash scripts/run_tests.sh -m slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh
exec bash scripts/check.sh "$@"
