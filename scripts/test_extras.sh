#!/usr/bin/env bash
# Install the extras, then test what only they make possible: ONNX files, the explorer in a browser,
# Weights & Biases, the API reference. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh
python=${VIRTUAL_ENV:-$PWD/.venv}/bin/python
"$python" -m pip install --quiet --disable-pip-version-check --no-build-isolation \
    --constraint requirements/constraints.txt --editable '.[docs,explorer,explorer-test,export,wandb]'
if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get install --yes --quiet=2 chromium chromium-driver >/dev/null ||
        printf -- '-- no chromium: the tests in a browser will say that they are skipped\n'
fi
exec "$python" -m pytest -q -rs -m 'slow or not slow' tests/tools/test_explorer.py \
    tests/tools/test_export.py tests/utils/test_boards.py tests/test_docs.py "$@"
