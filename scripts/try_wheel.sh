#!/usr/bin/env bash
# Install a wheel, without extras, in an empty environment and start what it brings.
# Usage: PYTHON=python3 scripts/try_wheel.sh dist/surefoot-0.1.0-py3-none-any.whl
set -euo pipefail

wheel=$(realpath "$1")
python=${PYTHON:-python3}
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT

"$python" -m venv "$room/venv"
"$room/venv/bin/python" -m pip install --quiet --disable-pip-version-check ${PIP_FLAGS:-} "$wheel"

cd "$room" # away from the checkout: what is imported is the wheel
venv/bin/surefoot --help
venv/bin/python -c "
import surefoot, surefoot.journal, surefoot.doctor
import sys
assert 'site-packages' in surefoot.__file__, surefoot.__file__
assert 'torch' not in sys.modules, 'import surefoot loaded torch'
surefoot.Guard
assert 'torch' in sys.modules
print(f'surefoot {surefoot.__version__} from its wheel: ok')
"
