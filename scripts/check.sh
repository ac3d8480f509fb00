#!/usr/bin/env bash
# ruff, mypy and pytest, as the continuous integration runs them. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${VIRTUAL_ENV:-$PWD/.venv}/bin/python

say() { printf -- '-- %s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

[ -x "$python" ] || die "nothing is installed in ${python%/bin/python}: run \`bash scripts/install.sh\`"
say "ruff check"
"$python" -m ruff check . || die "ruff found the above: \`ruff check --fix .\` mends what it can"
say "ruff format"
"$python" -m ruff format --check . || die "the files above are not formatted: run \`ruff format .\`"
say "mypy"
"$python" -m mypy || die "mypy found the above: mend the types"
say "pytest"
exec "$python" -m pytest -q "$@"
