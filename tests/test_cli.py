"""The command line: what a user types, what comes back, and the documented exit codes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import rlskit
from rlskit.attacks.options import OPTIONS, read
from rlskit.cli import run
from rlskit.cli.app import COMMANDS
from rlskit.cli.flags import ABSTAIN, HEADINGS, TRANSFER, flag
from rlskit.cli.help import EXAMPLES
from rlskit.cli.recipe import check
from rlskit.defenses import DEFENSES
from rlskit.errors import RequestError
from rlskit.models import GRANULARITIES
from rlskit.storage.locks import only_writer

TINY = """
from torch import nn

def tiny(num_classes=10, in_chans=1):
    return nn.Sequential(
        nn.Conv2d(in_chans, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, num_classes),
    )
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a tiny architecture in tiny.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(TINY)
    return tmp_path


@pytest.fixture
def trained(folder: Path) -> Path:
    """The folder with a trained tiny RLS model in rls.safetensors."""
    assert run(["convert", "tiny.py:tiny", "--image-size", "8", "-q"]) == 0
    assert run(["train", "--epochs", "3", "--lr", "0.1", "-q"]) == 0
    return folder


def fails(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with `code` and one sentence; return the sentence."""
    capsys.readouterr()
    assert run(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("rlskit: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


def test_the_main_job(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attack = ["attack", "--method", "pgd", "--eps", "0.02", "--n-attacked", "3"]
    assert run([*attack, "-o", "run", "--save-adversarial"]) == 0
    captured = capsys.readouterr()
    assert "multi n=3" in captured.out
    assert "UNTRAINED" not in captured.err
    result = json.loads((trained / "run" / "results.json").read_text())
    assert result["protocol"] == "multi"
    assert result["attack"]["params"]["step_size"] == pytest.approx(0.002)
    assert result["data"]["n"] == 360
    assert result["model"]["banks"] == 2

    adversarial = ["--adversarial", "run/adversarial.safetensors"]
    assert run(["eval", *adversarial, "--n-samples", "1,10", "--json", "-"]) == 0
    one, ten = json.loads(capsys.readouterr().out)
    assert (one["n_samples"], ten["n_samples"]) == (1, 10)
    assert ten["accuracy"]["robust"] == result["accuracy"]["robust"]

    assert run(["diversity", "--repeats", "3", "--json", "d.json"]) == 0
    assert "kappa" in capsys.readouterr().out
    assert -1 / 9 <= json.loads(Path("d.json").read_text())["agreement"]["kappa"]["mean"] <= 1


def test_no_number_on_abstaining_without_who_evades_it(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    abstain = ["eval", "--abstain", "0.1", "--limit", "60"]
    for wrong, sentence in (
        (abstain, "--abstain needs the attackers' budget, such as --eps 8/255"),
        (["eval", "--steps", "9"], "--steps is an option of --abstain"),
        ([*abstain, "--eps", "0.1", "--fail-under", "0.5"], "--fail-under knows of no abstaining"),
        ([*abstain, "--eps", "0.1", "--n-samples", "1"], "--abstain needs draws that can disagree"),
        ([*abstain, "--eps", "0.1", "--adversarial", "x"], "makes its own adversarial images"),
    ):
        assert sentence in fails(wrong, 2, capsys)
    given = ["--eps", "0.1", "--steps", "2", "--n-attacked", "2", "--n-samples", "3", "-o", "run"]
    assert run([*abstain, *given]) == 0
    cells = [line.split("│")[1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [cell.strip() for cell in cells if cell.strip()] == [
        "clean", "pgd eps=0.1", "transfer n=1", "evading eps=0.1", "eot n=2"
    ]  # fmt: skip
    found = json.loads((trained / "run" / "results.json").read_text())
    assert [*found["abstention"]["images"]] == ["clean", "transfer", "evading"]


def test_several_methods_and_budgets_end_in_the_worst_case(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attack = ["attack", "--method", "fgsm,noise", "--eps", "1/255,64/255", "-o", "run", "-q"]
    assert run(attack) == 0
    table = capsys.readouterr().out
    assert "worst-case" in table
    *results, worst = json.loads((trained / "run" / "results.json").read_text())
    assert [result["attack"]["method"] for result in results] == ["fgsm", "fgsm", "noise", "noise"]
    robust = [result["accuracy"]["robust"]["mean"] for result in results]
    assert worst["accuracy"]["robust"]["mean"] <= min(robust)
    assert max(robust) > min(robust)
    assert [one["method"] for one in worst["attack"]["params"]["of"]] == ["fgsm"] * 2 + [
        "noise"
    ] * 2


def test_the_attacks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from rlskit.attacks import ATTACKS

    assert run(["attacks"]) == 0
    table = capsys.readouterr().out
    assert all(f"│ {name} " in table for name in ATTACKS)
    assert run(["attacks", "apgd"]) == 0
    table = capsys.readouterr().out
    assert all(part in table for part in ("apgd-ce", "--rho 0.75", "linf, l2", "gradients", "yes"))
    assert "deepfool" not in table
    assert "'gradient'" in fails(["attacks", "gradient"], 2, capsys)


CANDIDATES = (
    "0.004", "3", "l2", "l1", "margin", "least-likely", "rand", "gaussian", "fista",
)  # fmt: skip
"""Texts of which each option of an attack takes one that is not its default."""


@pytest.mark.parametrize("option", OPTIONS)
def test_every_flag_of_an_attack_arrives_in_its_parameters(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlskit.attacks import ATTACKS, requests

    prepare_all, prepared = requests.prepare_all, []

    def prepare_and_stop(*args: Any, **given: Any) -> Any:
        prepared.extend(prepare_all(*args, **given))
        raise RequestError("enough")

    monkeypatch.setattr(requests, "prepare_all", prepare_and_stop)
    method = next(name for name, attack in ATTACKS.items() if option in attack.defaults)
    default = ATTACKS[method].defaults[option]
    given, expected = ["--no-" + flag(option)[2:]], False
    if default is not True:
        text, expected = next(
            (text, value)
            for text in CANDIDATES
            if (value := accepted(option, text)) not in (None, default)
        )
        given = [flag(option), text, *(["--eps", "0.5"] if option == "norm" else [])]
    assert run(["attack", "none", "--method", method, *given]) == 2
    assert prepared[0].method == method
    assert prepared[0].stated[option] == expected


def accepted(option: str, text: str) -> Any:
    """Return what an option's reader makes of a text; None where it refuses."""
    try:
        return read(option, text, "0:1")
    except RequestError:
        return None


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples_that_the_command_takes(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) < 80
    assert len(EXAMPLES[name]) in (2, 3)
    for example in EXAMPLES[name]:
        assert f"\n    rlskit {example}\n" in said
        assert shlex.split(example)[0] == name
        check(shlex.split(example))


def test_the_help_of_convert_names_every_defense_and_granularity(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["convert", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for names in (DEFENSES, GRANULARITIES):
        assert [name for name in names if not re.search(rf"\b{name}\b", said)] == []


def test_the_options_of_an_attack_stand_under_headings(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["attack", "--help"]) == 0
    said = capsys.readouterr().out
    own = [one for one in ("Arguments", *HEADINGS) if one not in (TRANSFER, ABSTAIN)]
    places = [said.index(f"\n{one}:\n") for one in own]
    assert places == sorted(places)
    _, _, sparse = said.partition("\nOf jsma, onepixel and pixle:\n")
    assert sparse.index("--largest-patch <int>") < sparse.index("\n\n")
    assert "\nOptions:\n" not in said


def test_results_on_stdout_are_json_alone_and_without_colour(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["schema"] == "rlskit.result/1"
    assert "\x1b" not in captured.out + captured.err


def test_untrained_model_is_said_loudly(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", "tiny.py:tiny", "--image-size", "8"]) == 0
    assert "untrained" in capsys.readouterr().err
    assert run(["attack", "--method", "fgsm", "--eps", "8/255", "--json", "-", "-q"]) == 0
    captured = capsys.readouterr()
    assert "UNTRAINED" in captured.err
    assert json.loads(captured.out)["model"]["trained"] is False


def test_gate(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attack = ["attack", "--method", "fgsm", "--eps", "0.01", "--json", "-", "-q"]
    assert run([*attack, "--fail-under", "0.99"]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    bound = found["accuracy"]["robust"]["lower_bound"]
    assert "gate not met: fgsm eps=0.01 (transfer n=1)" in captured.err
    assert f"at least {100 * bound:.1f} %" in captured.err
    assert found["gate"] == {"threshold": 0.99, "bound": bound, "verdict": "not met"}
    assert run([*attack, "--fail-under", str(bound)]) == 0
    assert json.loads(capsys.readouterr().out)["gate"]["verdict"] == "met"
    assert run(["eval", "-q", "--fail-under", "1"]) == 1


def test_who_is_killed_before_the_verdict_gets_it_by_the_same_command(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not so with another request, nor after a gate decided."""
    attack = ["attack", "--eps", "0.1", "--steps", "2", "--limit", "40", "-q", "-o", "run"]
    assert run(attack) == 0
    ungated = json.loads(Path("run/results.json").read_text())
    assert "holds a finished run" in fails(attack, 2, capsys)
    for more, said in (
        (["--seed", "1"], "holds another run (seed differ)"),
        (["--limit", "50"], "holds another run (data differ)"),
    ):
        assert said in fails([*attack, *more, "--fail-under", "1"], 2, capsys)
        assert json.loads(Path("run/results.json").read_text()) == ungated
    assert run([*attack, "--fail-under", "1"]) == 1
    assert "gate not met" in capsys.readouterr().err
    found = json.loads(Path("run/results.json").read_text())
    assert found.pop("gate")["verdict"] == "not met"
    assert {**found, "gate": None} == ungated
    assert "holds a finished run" in fails([*attack, "--fail-under", "0"], 2, capsys)


def test_the_gates_of_several_attacks_stand_in_the_run(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attack = ["attack", "--method", "fgsm,noise", "--eps", "0.2", "--limit", "50", "-o", "run"]
    assert run([*attack, "--fail-under", "0.5"]) == 1
    results = json.loads(Path("run/results.json").read_text())
    verdicts = [result["gate"]["verdict"] for result in results]
    bounds = [result["accuracy"]["robust"]["lower_bound"] for result in results]
    assert verdicts == ["met" if bound >= 0.5 else "not met" for bound in bounds]
    assert "not met" in verdicts
    said = capsys.readouterr().err
    assert said.count("gate not met: ") == verdicts.count("not met")
    assert said.count("gate met: ") == verdicts.count("met")
    assert run(["compare", "run", "run", "-q"]) == 0  # the parts are still known


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert", "resnet5O"], ["resnet5O", "resnet50"]),
        (["convert", "tiny.py:huge"], ["tiny.py", "huge"]),
        (["convert", "nowhere.py:tiny"], ["nowhere.py"]),
        (["convert", "tiny.py:tiny", "--banks", "0"], ["--banks", "0"]),
        (["convert", "tiny.py:tiny", "--granularity", "atom"], ["atom", "layer, block"]),
        (["convert", "resnet18", "--weights", "nowhere.pth"], ["nowhere.pth"]),
        (["convert", "tiny.py:tiny", "--mean", "a,b"], ["--mean", "a,b"]),
        (["convert"], ["name"]),
        (["convert", "tiny.py:tiny", "--bank", "x"], ["--bank"]),
        (["attack", "nowhere.safetensors"], ["nowhere.safetensors", "convert"]),
        (["attack", "--method", "pgf"], ["pgf", "pgd"]),
        (["attack", "--mehtod", "pgd"], ["--mehtod", "--method"]),
        (["atack"], ["atack", "'attack'"]),
        (["attack", "--protocol", "trasnfer"], ["did you mean transfer?", "--protocol adaptive"]),
        (["convert", "tiny.py:tiny", "--defense", "ensmble"], ["did you mean ensemble?"]),
        (["models", "rsenet18"], ["rsenet18", "did you mean resnet18"]),
        (["attacks", "pgf"], ["pgf", "did you mean pgd?"]),
        (["attack", "--eps", "-0.1"], ["--eps", "-0.1"]),
        (["attack", "--eps", "big"], ["--eps", "big", "8/255"]),
        (["attack", "--eps", "nan"], ["--eps", "nan"]),
        (["attack", "--eps", "8"], ["--eps 8", "8/255"]),
        (["attack", "--method", "fgsm", "--steps", "3"], ["--steps", "fgsm"]),
        (["attack", "--n-samples", "0"], ["--n-samples", "at least 1"]),
        (["attack", "--n-attacked", "0"], ["--n-attacked", "at least 1"]),
        (["attack", "--protocol", "white-box"], ["white-box", "transfer"]),
        (["attack", "--fail-under", "40"], ["--fail-under", "0.40"]),
        (["attack", "--device", "cuda:7"], ["cuda:7"]),
        (["attack", "--split", "dev"], ["dev"]),
        (["eval", "--n-samples", "0"], ["--n-samples"]),
        (["eval", "--n-samples", "many"], ["many"]),
        (["eval", "--data", "imagenet"], ["imagenet", "digits"]),
        (["eval", "--data", "mnist", "--data-dir", "."], ["mnist", "--download"]),
        (["eval", "--adversarial", "nowhere"], ["nowhere"]),
        (["diversity", "--n-samples", "1"], ["--n-samples"]),
        (["train", "--lr", "0"], ["--lr"]),
        (["train", "--loss", "hinge"], ["hinge", "ce"]),
        (["models", "no-such-model"], ["no-such-model"]),
        (["export"], ["--plan", "--bank"]),
        (["export", "--plan", "0"], ["plan"]),
        (["export", "--bank", "2"], ["plan"]),
    ],
)
def test_bad_requests(
    folder: Path, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] not in ("convert", "models", "attacks", "atack"):
        assert run(["convert", "tiny.py:tiny", "--image-size", "8", "-q"]) == 0
    message = fails(arguments, 2, capsys)
    for word in words:
        assert word in message
    assert not (folder / "runs").exists() or not list((folder / "runs").rglob("*.json"))


def test_unfitting_data_and_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", "tiny.py:tiny", "--image-size", "8", "-q"]) == 0
    labels = np.arange(20)
    np.savez("colour.npz", x_test=np.zeros((20, 3, 8, 8), np.uint8), y_test=labels % 10)
    np.savez("few.npz", x_test=np.zeros((20, 8, 8), np.uint8), y_test=labels % 4)
    assert "channel" in fails(["eval", "--data", "npz:colour.npz"], 2, capsys)
    message = fails(["eval", "--data", "npz:few.npz"], 2, capsys)
    assert "4 classes" in message
    assert "10" in message

    whole = Path("rls.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "cut.safetensors" in fails(["eval", "cut.safetensors"], 2, capsys)
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    Path("flipped.safetensors").write_bytes(flipped)
    assert "checksum" in fails(["eval", "flipped.safetensors"], 2, capsys)

    save_file({"conv.weight": torch.zeros(1)}, "other.safetensors")
    weights = ["--weights", "other.safetensors", "--data", "digits", "-o", "new.safetensors"]
    assert "0.weight" in fails(["convert", "tiny.py:tiny", *weights], 2, capsys)
    assert not Path("new.safetensors").exists()


def test_existing_files_are_kept_without_force(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert = ["convert", "tiny.py:tiny", "--image-size", "8", "-q"]
    assert run(convert) == 0
    before = Path("rls.safetensors").read_bytes()
    assert "--force" in fails([*convert, "--seed", "1"], 2, capsys)
    assert Path("rls.safetensors").read_bytes() == before
    assert run([*convert, "--seed", "1", "--force"]) == 0
    assert Path("rls.safetensors").read_bytes() != before
    assert run(["attack", "-q", "--eps", "0.1", "-o", "run"]) == 0
    capsys.readouterr()
    assert "--force" in fails(["attack", "-q", "--eps", "0.1", "-o", "run"], 2, capsys)


def test_nan_weights_are_exit_4_before_any_attack(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", "tiny.py:tiny", "--image-size", "8", "-q"]) == 0
    model = rlskit.load("rls.safetensors")
    with torch.no_grad():
        next(model.banks[1].parameters())[0] = float("nan")
    rlskit.save(model, "nan.safetensors")
    message = fails(["attack", "nan.safetensors", "-o", "run"], 4, capsys)
    assert "0.weight of bank 1" in message
    assert not (folder / "run").exists()


def test_a_loss_that_explodes_is_exit_3_and_keeps_the_last_good_weights(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("rls.safetensors").read_bytes()
    assert "loss" in fails(["train", "--lr", "1e30", "--epochs", "2", "-q"], 3, capsys)
    assert Path("rls.safetensors").read_bytes() == before


def test_export_gives_a_state_dict_that_loads_strictly(trained: Path) -> None:
    import importlib.util

    assert run(["export", "--plan", "0,1", "-o", "x.safetensors", "-q"]) == 0
    spec = importlib.util.spec_from_file_location("tiny", "tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.tiny().eval()
    network.load_state_dict(load_file("x.safetensors"), strict=True)
    model = rlskit.load("rls.safetensors")
    images = torch.rand(5, 1, 8, 8)
    expected = model.sampled(torch.tensor([0, 1]))(images)
    assert torch.equal(network(model.normalize(images)), expected)


def test_inspect_and_models(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["inspect"]) == 0
    shown = capsys.readouterr().out
    for words in ("tiny.py:tiny", "layers L                2", "M^L      4", "digits", "3 epochs"):
        assert words in shown
    assert run(["models", "resnet50"]) == 0
    names = capsys.readouterr().out.split()
    assert "resnet50" in names
    assert "torchvision:resnet50" in names
    assert run(["models"]) == 0
    assert len(capsys.readouterr().out.split()) > 1400


def test_another_machine_asks_for_ones_own_code(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlskit.models import own

    monkeypatch.setenv("XDG_STATE_HOME", str(trained / "elsewhere"))
    monkeypatch.setattr(own, "_introduced", {})
    assert "--model" in fails(["eval", "-q"], 2, capsys)
    assert run(["eval", "-q", "--model", "tiny.py:tiny"]) == 0


def test_the_published_resnet20_scores_776_of_846(
    folder: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    factory = f"{Path(__file__).parent / 'cifar_resnet.py'}:resnet20"
    weights = shared / "checkpoints" / "cifar10-resnet20.safetensors"
    constants = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
    convert = ["convert", factory, "--weights", str(weights), "--banks", "1", "--image-size", "32"]
    assert run([*convert, *constants]) == 0
    data = f"folder:{shared / 'data' / 'cifar10-subset'}"
    capsys.readouterr()
    assert run(["eval", "--data", data, "--split", "test", "-o", "run"]) == 0
    assert "91.7" in capsys.readouterr().out
    clean = json.loads(Path("run/results.json").read_text())["accuracy"]["clean"]
    assert clean["n"] == 846
    assert round(clean["mean"] * 846) == 776


@pytest.mark.slow
def test_the_lines_of_the_readme_in_an_empty_folder(folder: Path) -> None:
    command = Path(sys.executable).with_name("rlskit")

    def rlskit_(*arguments: str, code: int = 0) -> str:
        done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=600)
        assert done.returncode == code, done.stderr
        return done.stderr

    rlskit_("convert", "resnet50", "--banks", "2")
    attack = ("attack", "--method", "pgd", "--eps", "0.02", "--n-attacked", "2", "--limit", "20")
    assert "UNTRAINED" in rlskit_(*attack[:-1], "4")
    rlskit_("train", "--epochs", "1", "--limit", "64")
    assert "guessing could be, too" in rlskit_(*attack, code=4)  # one step is no training


def test_interruption_is_130_and_the_same_command_goes_on(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlskit.attacks import PreparedAttack

    attack = ["attack", "-q", "--eps", "0.1", "--batch-size", "90"]
    assert run([*attack, "-o", "whole"]) == 0
    capsys.readouterr()
    whole = json.loads(Path("whole/results.json").read_text())
    calls = 0
    original = PreparedAttack.__call__

    def interrupted(*args: object, **kwargs: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:  # two are the preflight's
            raise KeyboardInterrupt
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(PreparedAttack, "__call__", interrupted)
    assert run([*attack, "-o", "run"]) == 130
    kept = "2 finished blocks are kept in run: the same command goes on"
    assert capsys.readouterr().err == f"rlskit: interrupted; {kept}\n"
    assert len(list(Path("run/blocks").glob("*"))) == 2
    calls = 2  # at the very first block, in a folder that nobody named
    assert run(attack) == 130
    nothing = "no block was finished, so nothing is kept: run the same command again"
    assert capsys.readouterr().err == f"rlskit: interrupted; {nothing}\n"
    assert not list(Path("runs").iterdir())
    calls = 1
    assert run(attack) == 130
    again = (
        "1 finished block is kept in runs/attack-001: the same command with --out runs/attack-001"
    )
    assert f"interrupted; {again} goes on\n" in capsys.readouterr().err
    calls = 9
    assert run([*attack, "-o", "run"]) == 0
    again = json.loads(Path("run/results.json").read_text())
    assert again["accuracy"] == whole["accuracy"]
    assert again["perturbation"] == whole["perturbation"]


@pytest.mark.parametrize(
    ("signals", "patience", "kept"), [(1, 60.0, "3 finished blocks are"), (2, 60.0, "2 finished"),
                                      (1, 0.05, "2 finished")],
)  # fmt: skip
def test_a_block_that_is_soon_done_is_kept(
    signals: int, patience: float, kept: str, trained: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from rlskit.attacks import PreparedAttack
    from rlskit.runtime import interruptions

    monkeypatch.setattr(interruptions, "PATIENCE", patience)
    original, calls, began = PreparedAttack.__call__, count(1), time.monotonic()

    def terminated(*args: object, **kwargs: object) -> torch.Tensor:
        if next(calls) == 5:  # in the third block: two are the preflight's
            for _ in range(signals):
                signal.raise_signal(signal.SIGTERM)
            while patience < 1 and time.monotonic() < began + 60:
                time.sleep(0.01)
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(PreparedAttack, "__call__", terminated)
    assert run(["attack", "-q", "--eps", "0.1", "--batch-size", "90", "-o", "run"]) == 143
    assert f"terminated; {kept}" in capsys.readouterr().err
    assert time.monotonic() < began + 50


def test_a_busy_folder_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    """So that a second run in it ends at once."""
    program = (
        "import sys; from rlskit.cli import run\n"
        "codes = [run([name, 'none', '--out', 'run', '--force']) for name in ('attack', 'eval')]\n"
        "print(codes, 'torch' in sys.modules)"
    )
    with only_writer(tmp_path / "run"):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
        )
    assert done.stdout == "[3, 3] False\n", done.stderr
    assert done.stderr.count(f"run is being written by process {os.getpid()} on ") == 2


def test_an_interruption_names_what_is_kept_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlskit.cli.app.alone", interrupted)
    said = {}
    for command in ("attack", "eval", "train", "run", "audit", "diversity", "convert"):
        assert run([command]) == 130
        said[command] = capsys.readouterr().err
    assert "--out the run's folder goes on" in said["attack"] == said["eval"]
    assert {c for c, text in said.items() if "nothing is kept" in text} == {"convert"}
