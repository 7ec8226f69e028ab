#!/usr/bin/env bash
# `make wheel-test`: the wheel, installed beside a current requests and without torchattacks, in an
# environment and a folder outside the checkout, does what docs/tutorial.md says, and converts, scores
# and attacks a network.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH RLSKIT_CHECKPOINT RLSKIT_DATA_DIR

"${PYTHON:-python3}" -m venv "$work/venv"
PATH="$work/venv/bin:$PATH"
sed '/^# The extra torchattacks/,$d' "$checkout/constraints.txt" > "$work/constraints.txt"
python -m pip wheel --quiet --no-deps --wheel-dir "$work" "$checkout"
cd "$work"
python -m pip install --quiet -c constraints.txt rlskit-*.whl 'requests>=2.32'
python -m pip check

export XDG_STATE_HOME="$work/state" XDG_CACHE_HOME="$work/cache"
python - <<'PYTHON'
import importlib.util
import sys
from importlib.resources import files

import rlskit

assert rlskit.__file__.startswith(sys.prefix), rlskit.__file__
assert files("rlskit").joinpath("py.typed").is_file(), "py.typed is not in the wheel"
for template in ("rlskit.toml", "github.yml", "gitlab.yml"):
    assert files("rlskit.recipes").joinpath("templates", template).is_file(), template
assert importlib.util.find_spec("torchattacks") is None, "torchattacks is installed"
PYTHON

mkdir tutorial
(cd tutorial && python "$checkout/tests/tutorial.py" "$checkout/docs/tutorial.md")

rlskit convert test_resnet.r160_in1k --banks 2
rlskit doctor | grep "^torchattacks  *not installed"
rlskit eval --limit 64
rlskit attack --method fgsm,pgd,deepfool,cw,ead --limit 64 --steps 10 --quiet -o run
rlskit recipes table3 | grep "^  small/table3  "
RLSKIT_DATA_DIR=nowhere rlskit run small/ci/table2-mnist --dry-run --trust > plan
grep -- "convert $work/venv/.*/networks.py:vgg .*--data-dir nowhere" plan
rlskit report run -o report
test -s report/report.html
status=0
rlskit attack --method pixle || status=$?
test $status -eq 2
python - <<'PYTHON'
import json
from pathlib import Path

results = json.loads(Path("run/results.json").read_text())
methods = [result["attack"]["method"] for result in results]
assert methods == ["fgsm", "pgd", "deepfool", "cw", "ead", "worst-case"], methods
assert "torchattacks" not in results[0]["versions"]
PYTHON
