"""What the shell completes is what there is, and is found without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlskit import recipes
from rlskit.attacks import ATTACKS, ENGINES
from rlskit.cli import complete
from rlskit.data.named import DATASETS
from rlskit.data.sources import KINDS
from rlskit.defenses import DEFENSES
from rlskit.models import list_models
from rlskit.threat.adaptive import PROTOCOL
from rlskit.threat.view import PROTOCOLS


def test_the_names_are_those_of_the_catalogues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert complete.methods("") == [*ATTACKS]
    assert complete.engines("") == [*ENGINES]
    assert complete.defenses("") == [*DEFENSES]
    assert complete.protocols("") == [*PROTOCOLS, PROTOCOL]
    assert complete.data("") == [*DATASETS, *(f"{kind}:" for kind in KINDS)]
    assert sorted(complete.networks("")) == sorted(list_models())
    assert complete.recipes("") == [*recipes.shipped()]


def test_values_go_on_where_one_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    for name in ("net.py", "own.toml"):
        (tmp_path / name).touch()
    assert complete.methods("fgsm,pgd-") == ["fgsm,pgd-l2"]
    assert complete.data("folder:ph") == ["folder:photos/"]
    assert complete.data("folder:photos/") == ["folder:photos/cats/"]
    assert complete.networks("net") == ["net.py"]
    assert complete.recipes("o") == ["own.toml"]


CALL = """
import sys
from rlskit.cli import main
try:
    main()
finally:
    print("torch" in sys.modules or "timm" in sys.modules)
"""


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("rlskit convert resnet18", ["resnet18", "resnet18d"]),
        ("rlskit attack --protocol ad", ["adaptive"]),
    ],
)
def test_a_shell_is_answered_soon_and_with_nothing_else(typed: str, found: list[str]) -> None:
    asked = {
        "_RLSKIT_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", CALL], env=os.environ | asked, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [*found, "False"]
