"""The README's Python runs as it stands, but for a smaller network."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_python_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        smaller = block.replace('"resnet50"', '"test_resnet"')
        exec(smaller, names)
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
