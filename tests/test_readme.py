"""The Python of the README and of the docs runs as it stands, but for a smaller network."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import rlskit
from rlskit.cli.recipe import check
from rlskit.defenses import DEFENSES

README = Path(__file__).resolve().parents[1] / "README.md"

SMALL = """
from torch import nn

def small(num_classes=10, in_chans=1):
    return nn.Sequential(
        nn.Conv2d(in_chans, 8, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(512, num_classes)
    )
"""
"""What stands in the place of resnet50: it learns in a second."""


def smaller(block: str) -> str:
    Path("small.py").write_text(SMALL)
    return block.replace('"resnet50"', '"small.py:small"')


def test_the_python_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(smaller(block), names)
    assert capsys.readouterr().out.startswith("multi 0.")
    assert (tmp_path / "rls.safetensors").is_file()
    adversarial = names["adversarial"]
    assert isinstance(adversarial, torch.Tensor)
    assert adversarial.shape == (16, 1, 32, 32)


def test_the_readme_names_resnet50_as_the_issue_does() -> None:
    text = README.read_text()
    for line in (
        'model = rlskit.convert("resnet50", banks=2)',
        'result = rlskit.attack(model, data="digits", method="pgd", eps=0.02, n_attacked=10)',
        "rlskit attack --method pgd --eps 0.02 --n-attacked 10",
    ):
        assert line in text


def test_the_example_of_a_defense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(DEFENSES, "contrast", DEFENSES["none"])  # so that it is taken away again
    text = (README.parent / "docs/defenses.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(smaller(block), names := dict[str, object]())
    assert "defense='contrast'" in capsys.readouterr().out
    model = names["model"]
    assert isinstance(model, rlskit.BankedModel)
    one, other = rlskit.draws(model, 2, seed=0, purpose="defender")
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(one(image), one(image))
    assert not torch.equal(one(image), other(image))


def test_every_command_line_of_the_pages_is_one_that_its_command_takes() -> None:
    pages = [page.read_text() for page in (README, *sorted((README.parent / "docs").glob("*.md")))]
    shell = [block for page in pages for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)]
    lines = [
        line
        for texts, start in ((pages, "    "), (shell, ""))
        for text in texts
        for line in re.findall(f"^{start}rlskit (.*)", text, re.MULTILINE)
    ]
    found = [shlex.split(re.split(r" #| \|\| ", line)[0].rstrip("\\ ")) for line in lines]
    assert len(found) > 40
    for arguments in found:
        check(arguments)


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    page = (README.parent / "docs/api.md").read_text()
    named = re.findall(r"^::: rlskit\.(\w+)$", page, re.MULTILINE)
    assert sorted(named) == sorted(rlskit.__all__)


def test_every_page_has_its_place_on_the_site() -> None:
    docs = README.parent / "docs"
    pages = {page.name for page in docs.glob("*.md")} - {"index.md"}
    site = (README.parent / "mkdocs.yml").read_text()
    assert set(re.findall(r"- (\w+\.md)$", site, re.MULTILINE)) == pages | {"index.md"}
    assert pages <= set(re.findall(r"\]\((\w+\.md)\)", (docs / "index.md").read_text()))


def test_every_test_that_a_page_names_is_there() -> None:
    page = (README.parent / "docs/reliability.md").read_text()
    there = {
        name
        for file in Path(__file__).parent.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 30
    assert named <= there
