"""Recipes: inheritance, stages and their fingerprints, what is run again, costs, and the files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import made_results
from rlskit import recipes
from rlskit.attacks.passes import Setting
from rlskit.cli import run as command
from rlskit.cli.recipe import check
from rlskit.defenses import DEFENSES, defense_of
from rlskit.errors import RequestError, RlskitError
from rlskit.models import checkpoint
from rlskit.recipes import running
from rlskit.recipes.cost import Cost, cost
from rlskit.recipes.toml_file import merged, read
from rlskit.report import REPORTS, markdown_grid
from rlskit.results.comparing import hidden_among
from rlskit.results.result import Measure
from rlskit.threat.adaptive import prepare_adaptive
from small_models import model as small_model
from small_recipes import TWO_MODELS
from test_comparison import write

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(file for file in (ROOT / "recipes").rglob("*.toml") if file.parent.name != "base")

SMALL = (
    TWO_MODELS
    + """limit = 64
[attack]
limit = 64
pixel-range = "-1:1"
[columns.clean]
eval = { limit = 64 }
[columns.pgd]
attack = { method = "pgd", eps = 0.2 }
[columns.kappa]
diversity = { limit = 64, repeats = 2 }
[rows.rls5]
label = "5 attacked"
of = "rls"
attack.n-attacked = 5
diversity = false
[rows.rls]
label = "Ours"
convert = { defense = "rls", banks = 2 }
[rows.none]
convert.defense = "none"
train.lr = 0.1
diversity = false
[paper]
rls = { pgd = 70.9, kappa = "0.51 ± 0.018" }
"""
)

TINY = """
from torch import nn

def tiny(num_classes=10, in_chans=1):
    return nn.Sequential(
        nn.Conv2d(in_chans, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, num_classes),
    )
"""

STAGES = [
    "rls/convert", "rls/train", "rls/clean", "rls/pgd", "rls/kappa",
    "none/convert", "none/train", "none/clean", "none/pgd",
    "rls5/clean", "rls5/pgd",
]  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe above, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "small.toml").write_text(SMALL)
    return Path("small.toml")


class Commands:
    """Stands for the commands: writes what they would, and notes what was asked for."""

    def __init__(self, codes: dict[str, int] | None = None) -> None:
        self.codes = codes or {}
        self.ran: list[str] = []
        self.left: dict[str, bool] = {}
        self.results: dict[str, dict[str, Any]] = {}

    def __call__(self, arguments: list[str]) -> int:
        out = Path(arguments[arguments.index("--out") + 1])
        name = f"{out.parent.name}/{arguments[0]}"
        if arguments[0] in ("attack", "eval", "diversity"):
            name = f"{out.parent.name}/{out.name}"
            self.left[name] = (out / "blocks").is_dir()
            (out / "blocks").mkdir(parents=True, exist_ok=True)
            out = out / "results.json"
        assert not out.exists(), "the commands refuse to replace what is there"
        self.ran.append(name)
        code = self.codes.get(name, 0)
        if code < 2:
            out.write_text(json.dumps(self.results.get(name, result())))
        return code


def result(**changes: Any) -> dict[str, Any]:
    """A result as a command writes it: 7 of 10 images right, kappa 0.25."""
    share = replace(made_results.ACCURACY, mean=0.7, ci95=(0.4, 0.9), n=10, lower_bound=0.4)
    found = made_results.result(
        protocol="transfer",
        n_attacked=1,
        accuracy={"clean": share, "robust": share},
        agreement={"kappa": Measure(mean=0.25, std=0.125, ci95=None)},
        attack=replace(made_results.PGD, params={"eps": 0.1}, stated={"eps": 0.1}),
    )
    return found.to_json() | changes


def go(recipe: Path, commands: Commands, **options: Any) -> recipes.Outcome:
    """Run the recipe with stand-ins for the commands."""
    commands.ran.clear()
    return recipes.run(recipe, execute=commands, out="out", trust=True, **options)


def test_inheritance_merges_tables_and_the_nearer_file_wins(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "a.toml").write_text('title = "a"\n[train]\nlr = 1\nepochs = 1\n')
    (tmp_path / "b.toml").write_text("[train]\nepochs = 2\nseed = 2\n")
    (tmp_path / "c.toml").write_text(
        'extends = ["base/a.toml", "b.toml"]\n[train]\nseed = 3\n[rows.x]\nof = "y"\n'
    )
    assert read(tmp_path / "c.toml") == {
        "title": "a",
        "train": {"lr": 1, "epochs": 2, "seed": 3},
        "rows": {"x": {"of": "y"}},
    }
    assert merged({"a": {"b": 1}}, {"a": False}) == {"a": False}


def test_a_recipe_that_extends_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "b.toml"\n')
    (tmp_path / "b.toml").write_text('extends = "a.toml"\n')
    with pytest.raises(RequestError, match=r"a\.toml -> b\.toml -> a\.toml"):
        read(tmp_path / "a.toml")


def test_set_reads_toml_values_and_takes_bare_words_as_text(recipe: Path) -> None:
    sets = ["train.epochs=3", "rows.none.train.lr = 0.5", "all.data=mnist", "rows.rls5=false"]
    values = read(recipe, [*sets, 'title="a = b"'])
    assert values["train"] == {"epochs": 3, "limit": 64}
    assert values["rows"]["none"]["train"]["lr"] == 0.5
    assert values["all"] == {"data": "mnist"}
    assert values["title"] == "a = b"
    assert [row.name for row in recipes.load(recipe, sets).rows] == ["rls", "none"]
    assert recipes.load(recipe).paper["rls"]["pgd"] == 70.9
    assert recipes.load(recipe, ["paper=false"]).paper == {}
    for wrong in ("train.epochs", "train..epochs=1", "=1"):
        with pytest.raises(RequestError, match="KEY=VALUE"):
            read(recipe, [wrong])


def test_stages_and_their_command_lines(recipe: Path) -> None:
    loaded = recipes.load(recipe)
    assert [stage.name for stage in loaded.stages] == STAGES
    lines = {stage.name: " ".join(stage.arguments(Path("o"))) for stage in loaded.stages}
    assert lines["rls/convert"] == (
        "convert tiny.py:tiny --image-size 8 --defense rls --banks 2 "
        "--out o/rls/converted.safetensors"
    )
    assert lines["none/train"] == (
        "train o/none/converted.safetensors --epochs 1 --limit 64 --lr 0.1 "
        "--out o/none/rls.safetensors"
    )
    assert lines["rls5/pgd"] == (
        "attack o/rls/rls.safetensors --limit 64 --pixel-range=-1:1 --method pgd --eps 0.2 "
        "--n-attacked 5 --out o/rls5/pgd"
    )
    assert lines["rls/kappa"].endswith("--repeats 2 --out o/rls/kappa")
    assert [column.label for column in loaded.columns] == ["clean", "pgd eps=0.2 in -1:1", "kappa"]


def test_flags_lists_and_tables_on_the_command_line(recipe: Path) -> None:
    sets = [
        "convert.mean=[0.5, 0.25]", "convert.settings={alpha = 2, beta = 0.5}",
        "convert.small-images=true", "convert.pretrained=false",
        "columns.pgd.attack.random-start=false",
    ]  # fmt: skip
    stages = recipes.load(recipe, sets).stages
    line = " ".join(stages[0].arguments(Path("o")))
    assert "--mean 0.5,0.25 --settings alpha=2,beta=0.5 --small-images --defense" in line
    assert "pretrained" not in line
    assert "--no-random-start" in stages[3].arguments(Path("o"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("trian.epochs=1", "'trian' is unknown; did you mean train?"),
        ("rows.rls.lable=x", "rows.rls: 'lable' is unknown; did you mean label?"),
        ("rows.rls5.of=rsl", "of = 'rsl' is no row; did you mean rls?"),
        ("rows.x.of=rls5", "the row 'rls5' has no model of its own"),
        ("rows.rls5.train.epochs=1", "has no convert and no train of its own"),
        ("columns.pgd.eval.seed=1", "needs one of attack, eval, diversity, not 2"),
        ("columns.pgd.show=robustt", "did you mean robust?"),
        ("columns.train.eval={}", "is not convert or train"),
        ("paper.rls.pdg=1", "paper.rls: 'pdg' is unknown; did you mean pgd?"),
        ("paper.rsl.pgd=1", "paper.rsl is no row; did you mean rls?"),
        ("paper.rls.pgd=nan", "paper.rls.pgd is a number or a text, not nan"),
        ("attack.out=x", "out is decided by `rlskit run`"),
        ("train=3", "train is a table of values, not 3"),
        ("rows.rls=3", "rows.rls is a table of values, not 3"),
        ("rows.rls5.of=3", "of = 3 is no row"),
    ],
)
def test_what_is_unknown_is_named_with_the_nearest(recipe: Path, change: str, said: str) -> None:
    with pytest.raises(RequestError) as refused:
        recipes.load(recipe, [change])
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("columns.pgd.attack.epps=1", "stage rls/pgd: No such option: --epps"),
        ("train.epochs=many", "stage rls/train: "),
        ("columns.pgd.attack.method=pdg", "stage rls/pgd: "),
        ("columns.pgd.attack.eps=3", "stage rls/pgd: `eps`"),
        ("columns.pgd.attack.protocol=etot", "stage rls/pgd: `protocol` 'etot' is unknown"),
        ("columns.pgd.attack.risk=most", "stage rls/pgd: `risk` 'most' is unknown"),
        ("columns.pgd.attack.precision=fp16", "stage rls/pgd: `precision` 'fp16' is unknown"),
        ("columns.pgd.attack={protocol='adaptive'}", "stage rls/pgd: `method` is no option"),
        ("columns.clean.eval.n-samples=x", "stage rls/clean: `n_samples` 'x' is not a number"),
        ("columns.kappa.diversity.transfer=true", "stage rls/kappa: `transfer` is of"),
        ("train.loss=mes", "stage rls/train: `loss` 'mes' is unknown"),
    ],
)
def test_options_are_checked_before_anything_runs(recipe: Path, change: str, said: str) -> None:
    commands = Commands()
    with pytest.raises(RequestError) as refused:
        go(recipe, commands, check=check, sets=[change])
    assert said in str(refused.value)
    assert commands.ran == []
    assert not Path("out").exists()


def test_a_second_run_does_what_has_changed_and_what_depends_on_it(recipe: Path) -> None:
    commands = Commands()
    assert go(recipe, commands).code == 0
    assert commands.ran == STAGES
    go(recipe, commands)
    assert commands.ran == []
    go(recipe, commands, sets=["rows.rls5.attack.n-attacked=6"])
    assert commands.ran == ["rls5/pgd"]
    assert not commands.left["rls5/pgd"]  # blocks of another request are gone
    go(recipe, commands, sets=["rows.rls.train.lr=0.2"])
    assert commands.ran == [*STAGES[1:5], "rls5/clean", "rls5/pgd"]
    go(recipe, commands, sets=["rows.rls.train.lr=0.2"])
    assert commands.ran == []
    Path("out/rls/pgd/results.json").unlink()
    go(recipe, commands, sets=["rows.rls.train.lr=0.2"])
    assert commands.ran == ["rls/pgd"]
    switched = ["rows.rls.train.lr=0.2", "columns.pgd.attack.random-start=false"]
    go(recipe, commands, sets=switched)
    assert commands.ran == [name for name in STAGES if name.endswith("/pgd")]
    Path("out/rls/rls.safetensors").write_bytes(b"other weights")
    go(recipe, commands, sets=switched)
    cells = [name for name in STAGES if not name.endswith(("convert", "train"))]
    assert commands.ran == [name for name in cells if name.startswith("rls")]
    Path("tiny.py").write_text(TINY + "\n# changed\n")
    go(recipe, commands, sets=["rows.rls.train.lr=0.2"])
    assert commands.ran == STAGES


def test_other_images_in_a_folder_run_everything_again(recipe: Path) -> None:
    commands, image = Commands(), Path("images/test/0/a.png")
    image.parent.mkdir(parents=True)
    image.write_bytes(b"one")
    other = image.with_name("b.png")
    for change in (lambda: None, lambda: image.write_bytes(b"four"), lambda: image.rename(other)):
        change()
        go(recipe, commands, sets=["all.data=folder:images"])
        assert commands.ran == STAGES
        go(recipe, commands, sets=["all.data=folder:images"])
        assert commands.ran == []


@pytest.mark.parametrize(
    "change",
    ["all.data=manifest:photos/t.csv", "convert.name=hf:photos", "all.data=npz:~/photos/a.png"],
)
def test_other_images_of_a_table_or_another_network_run_everything_again(
    recipe: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands, place = Commands(), Path("photos")
    monkeypatch.setenv("HOME", str(Path.cwd()))
    place.mkdir()
    (place / "t.csv").write_text("path,label\na.png,0\n")
    for content in (b"one", b"four"):
        (place / "a.png").write_bytes(content)
        go(recipe, commands, sets=[change])
        assert commands.ran == STAGES
        go(recipe, commands, sets=[change])
        assert commands.ran == []


READS = """
import torch
from torch import nn

def reads():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    network.load_state_dict(torch.load("weights.pth"))
    return network
"""


def test_a_factory_reads_its_weights_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell is measured again where they are others, and only there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "write_reports", lambda *_: None)
    Path("own.py").write_text(READS)
    Path("r.toml").write_text(
        '[all]\ndata = "digits"\n[convert]\nname = "own.py:reads"\nimage-size = 8\n'
        'defense = "none"\n[rows.own]\n[columns.clean]\neval = { limit = 19 }\n'
    )
    ran: list[str] = []

    def execute(arguments: list[str]) -> int:
        if arguments[0] == "convert":
            ran.append("convert")
            return command([*arguments, "--mean", "0", "--std", "1"])
        write(Path(arguments[arguments.index("--out") + 1]), [[1] * 4])
        ran.append("eval")
        return 0

    for bias, expected in ((0, ["convert", "eval"]), (0, ["convert"]), (1, ["convert", "eval"])):
        weights = {"1.weight": torch.eye(10, 64), "1.bias": torch.full((10,), float(bias))}
        torch.save(weights, "weights.pth")
        ran.clear()
        recipes.run("r.toml", execute=execute, trust=True)
        assert ran == expected


def test_a_failed_stage_is_named_and_the_rest_goes_on(recipe: Path) -> None:
    commands = Commands({"rls/pgd": 4})
    with pytest.raises(recipes.StageError, match="stage rls/pgd failed with exit code 4") as failed:
        go(recipe, commands)
    assert failed.value.exit_code == 4
    assert commands.ran == STAGES[:4]
    commands.codes.clear()
    go(recipe, commands)
    assert commands.ran == STAGES[3:]
    assert commands.left["rls/pgd"]  # its blocks are continued


def test_what_a_command_refuses_leaves_what_was_there(recipe: Path) -> None:
    commands = Commands()
    go(recipe, commands)
    for name, change in (
        ("rls/pgd", "rows.rls.attack.steps=7"),
        ("none/train", "rows.none.train.lr=2"),
    ):
        commands.codes = {name: 2}
        with pytest.raises(recipes.StageError, match=f"stage {name} failed with exit code 2"):
            go(recipe, commands, sets=[change])
        assert not list(Path("out/stages").glob("*.before"))
    commands.codes.clear()
    go(recipe, commands)
    assert commands.ran == []


def test_an_interrupted_stage_keeps_its_exit_code(recipe: Path) -> None:
    with pytest.raises(recipes.StageError, match="rls/train was interrupted") as failed:
        go(recipe, Commands({"rls/train": 130}))
    assert failed.value.exit_code == 130


def test_an_interrupted_training_is_given_what_it_left(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, found, records = Path("out/.rlskit-new/rls"), list[list[str]](), [{"epochs": 0}]
    state = new / "rls.unfinished.safetensors"
    monkeypatch.setattr(checkpoint, "inspect", lambda file: {"training": records})

    def train(arguments: list[str]) -> int:
        if "rls/rls.safetensors" not in arguments[-1] or arguments[0] != "train":
            return commands(arguments)
        found.append(sorted(file.name for file in new.glob("rls.*")))
        (new / "rls.safetensors").write_text("weights")
        if len(found) < 3:
            state.write_text("half an epoch")
            return 130
        state.unlink(missing_ok=True)
        return 143  # and before it could be noted, the run is ended, too

    commands = Commands()
    for _ in range(4):
        with pytest.raises(recipes.StageError, match="rls/train was interrupted"):
            recipes.run(recipe, execute=train, out="out", trust=True)
        if len(found) == 1:
            (new / "rls.best.safetensors").write_text("the best so far")
    left = ["rls.best.safetensors", "rls.safetensors", "rls.unfinished.safetensors"]
    assert found == [[], left, left, []]  # the last one afresh: it says another number of epochs
    records[0]["epochs"] = 1
    assert recipes.run(recipe, execute=train, out="out", trust=True).code == 0
    assert len(found) == 4
    assert Path("out/rls/rls.safetensors").read_text() == "weights"


def test_a_gate_that_is_not_met_ends_the_run_with_1_and_is_remembered(recipe: Path) -> None:
    commands = Commands({"rls/pgd": 1})
    assert go(recipe, commands).code == 1
    assert commands.ran == STAGES
    again = go(recipe, commands)
    assert again.code == 1
    assert commands.ran == []
    assert again.not_met == ("rls/pgd: gate not met",)  # its result is too old to say more


def test_gates_are_told_from_the_results_whenever_the_recipe_runs(recipe: Path) -> None:
    commands = Commands({"rls/pgd": 1})
    sets = ["attack.fail-under=0.5"]
    for gate, name in (("not met", "rls/pgd"), ("met", "rls5/pgd")):
        commands.results[name] = result(
            gate={"threshold": 0.5, "bound": 0.4, "verdict": gate},
        )
    for _ in range(2):
        done = go(recipe, commands, sets=sets)
        assert done.code == 1
        (said,) = done.not_met
        assert said.startswith("rls/pgd: gate not met: pgd eps=0.1 (transfer n=1) accuracy is at")
        assert "40.0 % with 95 % confidence, under 50.0 %" in said
        assert [line.partition(":")[0] for line in done.met] == ["rls5/pgd"]
    assert commands.ran == []
    other = go(recipe, commands, sets=sets, only="none/*")  # its report shows all that is finished
    assert (other.code, other.not_met) == (1, done.not_met)


@pytest.mark.parametrize(
    ("name", "code"), [("rls/pgd", 130), ("rls/train", 3), ("rls/convert", 2), ("rls/kappa", 4)]
)
def test_what_a_trial_would_replace_stays_until_it_is_whole(
    recipe: Path, name: str, code: int
) -> None:
    commands = Commands()
    go(recipe, commands)
    Path("out/rls/pgd/notes.txt").write_text("mine")
    files = [file for file in Path("out").rglob("*") if file.is_file()]
    of_the_run = [Path("out") / name for name in ("results.json", *REPORTS)]
    before = {file: file.read_bytes() for file in files if file not in of_the_run}
    commands.codes = {name: code}
    trial = {
        "rls/pgd": "rows.rls.attack.steps=7", "rls/train": "rows.rls.train.lr=2",
        "rls/convert": "rows.rls.convert.seed=1", "rls/kappa": "rows.rls.diversity.seed=1",
    }[name]  # fmt: skip
    for only in (None, name):
        with pytest.raises(recipes.StageError, match=f"the stage {name} .*is kept"):
            go(recipe, commands, sets=[trial], only=only)
        assert commands.ran == [name]
        assert all(file.read_bytes() == content for file, content in before.items())
    commands.codes.clear()
    go(recipe, commands)
    assert commands.ran == []
    go(recipe, commands, sets=[trial], only=name)
    assert commands.ran == [name]
    assert Path("out/rls/pgd/notes.txt").read_text() == "mine"
    assert not Path("out/.rlskit-new").exists()


def test_a_kill_while_a_stage_is_put_in_place_loses_nothing(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = Commands()
    go(recipe, commands)
    Path("out/rls/pgd/notes.txt").write_text("mine")
    trial = {"sets": ["rows.rls.attack.steps=7"], "only": "rls/pgd"}
    original = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self == Path("out/.rlskit-new/rls/pgd"):
            raise KeyboardInterrupt
        return original(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            go(recipe, commands, **trial)
    assert commands.ran == ["rls/pgd"]
    go(recipe, commands, **trial)
    assert commands.ran == []  # it was whole already
    assert Path("out/rls/pgd/results.json").is_file()
    assert Path("out/rls/pgd/notes.txt").read_text() == "mine"


def test_a_model_that_changes_while_it_is_measured_fills_no_cell(recipe: Path) -> None:
    def retrained(arguments: list[str]) -> int:
        if "rls/pgd" in " ".join(arguments):
            Path("out/rls/rls.safetensors").write_bytes(b"half trained")
        return commands(arguments)

    commands = Commands()
    with pytest.raises(recipes.StageError, match="rls/pgd measured a model that has changed"):
        recipes.run(recipe, execute=retrained, out="out", trust=True)
    assert not Path("out/rls/pgd").exists()


def test_a_command_that_writes_nothing_has_not_run(recipe: Path) -> None:
    with pytest.raises(recipes.StageError, match=r"wrote no converted.safetensors") as failed:
        recipes.run(recipe, execute=lambda _: 0, out="out", trust=True)
    assert failed.value.exit_code == 3


def test_one_run_at_a_time(recipe: Path) -> None:
    def twice(arguments: list[str]) -> int:
        with pytest.raises(RlskitError, match="out is being written"):
            recipes.run(recipe, execute=commands, out="out", trust=True)
        return commands(arguments)

    commands = Commands()
    recipes.run(recipe, execute=twice, out="out", trust=True, only="rls/convert")
    assert commands.ran == ["rls/convert"]


def test_what_no_stage_wrote_is_not_replaced(recipe: Path) -> None:
    go(recipe, Commands(), only="rls/[ct]*")
    Path("out/none").mkdir()
    Path("out/none/converted.safetensors").write_bytes(b"mine")
    with pytest.raises(RequestError, match="was not written by this recipe's none/convert"):
        go(recipe, Commands())
    assert Path("out/none/converted.safetensors").read_bytes() == b"mine"


NAMING = [
    ("convert.name", 'rows.none.convert.name = ["tiny.py:tiny"]'),
    ("model", 'columns.pgd.attack.model = "tiny.py:tiny"'),
    ("train", 'rows.none.train.model = "package.tiny:tiny"'),
    ("all", 'all.model = "tiny.py:tiny"'),
]


@pytest.mark.parametrize(("what", "line"), NAMING, ids=[what for what, _ in NAMING])
@pytest.mark.parametrize("dry_run", [True, False])
def test_code_that_a_recipe_names_runs_only_when_the_user_agrees(
    recipe: Path, dry_run: bool, what: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tiny.py").write_text(f"open('ran', 'w')\n{TINY}")
    Path("package").mkdir()
    Path("package/__init__.py").write_text("open('ran', 'w')\n")
    Path("package/tiny.py").write_text(TINY)
    named = SMALL.replace('"tiny.py:tiny"', '"test_resnet"')
    Path("base.toml").write_text(named)
    Path("more.toml").write_text(line)
    recipe.write_text('extends = ["base.toml", "more.toml"]\n')
    arguments = ["run", str(recipe), "-o", "out", *(["--dry-run"] if dry_run else [])]
    assert command(arguments) == 2
    assert not Path("ran").exists()
    assert not Path("out").exists()
    message = capsys.readouterr().err
    assert "would run code" in message
    assert "tiny:tiny" in message.replace(".py", "")
    spec = "package.tiny:tiny" if "package" in line else "tiny.py:tiny"
    loaded = recipes.load(recipe)
    with pytest.raises(RequestError, match="would run code"):
        recipes.estimate(loaded, Commands())
    recipes.require_trust(loaded, trust=True)
    recipes.require_trust(recipes.load(recipe, [f"{line.split(' ')[0]}={spec}"]), trust=False)
    other = recipes.load(recipe, ["rows.rls5.label=other.py:tiny"])
    with pytest.raises(RequestError, match="would run code"):
        recipes.require_trust(other, trust=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('train."model=tiny.py:tiny"=true', "is no option"),
        ('attack."help" = true', "help is decided by"),
        ('all."trust" = true', "trust is decided by"),
        ('convert.name="--help"', "is an option, no network's name"),
        ('train.amp="--model=tiny.py:tiny"', "does not take a value"),
        ('train.amp="--help"', "does not take a value"),
        ('convert.small-images="--force"', "does not take a value"),
        ("train.h=true", "No such option: --h"),
        ("train.debug=true", "No such option: --debug"),
    ],
)
def test_no_option_hides_in_another(
    recipe: Path, change: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key, _, value = change.partition("=") if '"model' not in change else (change[:-5], "=", "true")
    section, _, name = key.strip().partition(".")
    recipe.write_text(SMALL.replace(f"[{section}]\n", f"[{section}]\n{name} = {value}\n", 1))
    if section == "all":
        recipe.write_text(f"[all]\n{name} = {value}\n{SMALL}")
    if name == "name":
        recipe.write_text(SMALL.replace('name = "tiny.py:tiny"', f"name = {value}"))
    assert command(["run", str(recipe), "--trust", "-o", "out"]) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


def test_titles_neither_command_the_terminal_nor_break_the_table(recipe: Path) -> None:
    sets = ['title="a\\u001b[2J\\nb"', 'rows.rls.label="x|y\\u001b"', "rows.none=false"]
    go(recipe, Commands(), sets=sets, only="rls/*")
    lines = Path("out/table.md").read_text().splitlines()
    assert lines[0] == r"**a\x1b[2J\nb**"
    assert r"x\|y\x1b" in lines[2]
    assert all(line.replace(r"\|", "").count("|") == lines[3].count("|") for line in lines[2:6])


def test_only_runs_what_matches_and_needs_what_comes_before(recipe: Path) -> None:
    commands = Commands()
    with pytest.raises(RequestError, match="rls/pgd needs rls/train, which is not finished"):
        go(recipe, commands, only="rls/pgd")
    go(recipe, commands, only="rls/[ct]*")
    assert commands.ran == ["rls/convert", "rls/train", "rls/clean"]
    go(recipe, commands, only="rls/pgd")
    assert commands.ran == ["rls/pgd"]
    with pytest.raises(RequestError, match=r"matches no stage; did you mean rls5/pgd\?"):
        go(recipe, commands, only="rls5/pdg")


def test_a_folder_of_something_else_is_refused(recipe: Path) -> None:
    Path("out/stages").mkdir(parents=True)  # a theatre's
    Path("out/stages/left.json").write_text('{"width": 12}')
    with pytest.raises(RequestError, match="something else than a recipe's run"):
        go(recipe, Commands())
    assert [file.name for file in Path("out").iterdir()] == ["stages"]


def test_the_table_shows_protocols_and_the_papers_numbers(recipe: Path) -> None:
    commands = Commands()
    done = go(recipe, commands, only="rls/*")
    text = Path("out/table.md").read_text()
    assert "| measured | 5 attacked | Ours<br>N=10 | none |" in text
    assert (
        "| pgd eps=0.2 in -1:1<br>transfer n=1 | – | 70.0<br>40.0 – 90.0<br>paper 70.9 | – |"
        in text
    )
    assert "| – | 0.250<br>± 0.125<br>paper 0.51 ± 0.018 | – |" in text
    several = json.dumps([result(), result(protocol="multi", n_attacked=5)])
    go(recipe, commands)
    Path("out/rls5/pgd/results.json").write_text(several)
    text = markdown_grid(recipes.grid(done.recipe, Path("out"), recipes.is_finished))
    assert "70.0<br>40.0 – 90.0<br>multi n=5 |" in text
    white = json.dumps([{**result(), "defense": "none"}])
    Path("out/none/pgd/results.json").write_text(white)
    Path("out/rls5/pgd/results.json").write_text(json.dumps([result()]))
    text = markdown_grid(recipes.grid(done.recipe, Path("out"), recipes.is_finished))
    assert "transfer n=1 | 70.0<br>40.0 – 90.0 | 70.0<br>40.0 – 90.0<br>paper 70.9 | " in text
    assert "| 70.0<br>40.0 – 90.0<br>white-box n=1 |" in text
    objects = recipes.to_json(done.recipe, Path("out"), recipes.is_finished)
    cell = objects["rows"][1]["cells"][1]
    assert (cell["column"], cell["value"]["mean"], cell["paper"]) == ("pgd", 0.7, 70.9)


KNOWN_AND_EOT = [
    "columns.known.attack={protocol='known', method='pgd', eps=0.2}",
    "columns.eot.attack={protocol='eot', method='pgd', eps=0.2, n-attacked=3}",
]


def test_a_row_with_known_and_eot_says_what_is_hidden(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def accuracy(mean: float) -> dict[str, Any]:
        return {"robust": {**result()["accuracy"]["robust"], "mean": mean}}

    commands = Commands()
    fresh = {"protocol": "eot", "n_attacked": 3}
    commands.results = {
        "rls/known": result(protocol="known", n_attacked=10, accuracy=accuracy(0.24)),
        "rls/eot": result(**fresh, accuracy=accuracy(0.45)),
        "rls5/known": result(protocol="known", n_attacked=10, accuracy=accuracy(0.3)),
        "rls5/eot": result(**fresh, attack=None),  # another attack: no question in common
        "none/known": result(protocol="known", n_attacked=1, accuracy=accuracy(0.8)),
        "none/eot": result(**fresh, accuracy=accuracy(0.7)),
    }
    done = go(recipe, commands, sets=KNOWN_AND_EOT)
    sentence = "of the 45.0 points that eot n=3 leaves, 21.0 are hidden and 24.0 robust"
    text = Path("out/table.md").read_text()
    none = (
        "known n=1 leaves 80.0 points, more than the 70.0 that eot n=3 leaves: it tells nothing of "
        "what is hidden"
    )
    assert text.endswith(f"draws answer together\n\n- Ours: {sentence}\n- none: {none}\n")
    objects = recipes.to_json(done.recipe, Path("out"), recipes.is_finished)
    assert [row["hidden"] for row in objects["rows"]] == [[], [sentence], [none]]
    again = ["run", str(recipe), "--trust", "-o", "out"]
    assert command([*again, *(f"--set={change}" for change in KNOWN_AND_EOT)]) == 0
    assert f"Ours: {sentence}\n" in capsys.readouterr().out


def test_nothing_is_said_of_a_defense_with_one_draw() -> None:
    found = [made_results.result(protocol=p, n_attacked=1) for p in ("known", "eot")]
    assert hidden_among(found) == []
    assert len(hidden_among([found[0], made_results.result(protocol="eot", n_attacked=2)])) == 1


def test_what_a_row_attacks_is_for_the_columns_beside_known(recipe: Path) -> None:
    stages = {stage.name: stage for stage in recipes.load(recipe, KNOWN_AND_EOT).stages}
    assert stages["rls5/pgd"].options["n-attacked"] == "5"
    assert stages["rls5/eot"].options["n-attacked"] == "5"
    assert "n-attacked" not in stages["rls5/known"].options
    told = recipes.load(recipe, [*KNOWN_AND_EOT, "columns.known.attack.n-attacked=4"])
    stage = told.cell("rls", "known")
    assert stage is not None
    assert stage.options["n-attacked"] == "4"  # which the command refuses


def costs(recipe: Path, sets: list[str]) -> dict[str, tuple[int, int, int]]:
    """Count the stages of a row with two banks, and BatchNorm."""
    stages = recipes.load(recipe, sets).stages
    found = {stage.name: cost(stage, small_model()) for stage in stages}
    return {name: (c.images, c.forwards, c.backwards) for name, c in found.items() if c}


def test_costs_are_those_counted_by_hand(recipe: Path) -> None:
    sets = [
        "train.epochs=2", "train.group-size=4", "train.batch-size=10", "train.bn-batches=3",
        "attack.repeats=2", "columns.cw.attack={method = 'cw', c = 1, steps = 7}",
        "columns.fab.attack={method = 'fab'}",
        "columns.known.attack={protocol = 'known', eps = 0.1}",
    ]  # fmt: skip
    found = costs(recipe, sets)
    assert found["rls/convert"] == (0, 0, 0)
    # 64 images, 3 held out and scored by 10 draws; BatchNorm sees 30 images through 2 banks
    assert found["rls/train"] == (61, 2 * (61 * 4 + 60 + 30), 2 * 61 * 4)
    assert found["rls/clean"] == (64, 640, 0)
    assert found["rls/kappa"] == (64, 64 * 10 * 2, 0)
    # 2 repeats: clean and attacked images on 10 draws each, 10 steps of PGD on 5 draws
    assert found["rls5/pgd"] == (64, 2 * (64 * 10 * 5 + 2 * 640), 2 * 64 * 10 * 5)
    assert found["rls/cw"] == (64, 2 * (64 * 8 + 2 * 640), 2 * 64 * 7)
    # at most 100 steps, each of two forward passes and a backward pass per other class
    assert found["rls/fab"] == (64, 2 * (64 * 202 + 2 * 640), 2 * 64 * 900)
    # all 10 draws that answer
    assert found["rls/known"] == (64, 2 * (64 * 10 * 10 + 2 * 640), 2 * 64 * 10 * 10)


def test_a_bound_is_said_to_be_one(recipe: Path) -> None:
    sets = ["columns.both.attack={method = 'pgd,fab'}", "columns.fgsm.attack={method = 'fgsm'}"]
    stages = {stage.name: stage for stage in recipes.load(recipe, sets).stages}
    bounds = {name: cost(stages[f"rls/{name}"], small_model()) for name in ("both", "fgsm")}
    assert {name: found.at_most for name, found in bounds.items() if found} == {
        "both": True, "fgsm": False
    }  # fmt: skip


def test_adversarial_training_costs_its_steps_as_well(recipe: Path) -> None:
    sets = ["train.adversarial=pgd", "train.adversarial-steps=4", "train.holdout=0"]
    found = costs(recipe, [*sets, "train.bn-batches=0"])
    assert found["rls/train"] == (64, 64 * 3 * 5, 64 * 3 * 5)


def test_what_is_held_out_is_attacked_too_and_scored_by_ten_draws_at_most(recipe: Path) -> None:
    sets = ["train.adversarial=pgd", "train.adversarial-steps=4", "train.bn-batches=0"]
    found = costs(recipe, sets)  # of 64 images 3 are held out
    assert found["rls/train"] == (61, 61 * 3 * 5 + 3 * (3 * 4 + 10), 61 * 3 * 5 + 3 * 3 * 4)
    (train,) = (s for s in recipes.load(recipe, sets[2:]).stages if s.name == "none/train")
    model = small_model(1, "rse")
    model.card.settings.update(DEFENSES["rse"].settings)
    assert defense_of(model).samples(model) == 50
    assert cost(train, model) == Cost(61, 61 + 3 * 10, 61)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_recipe_is_understood(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    loaded = recipes.load(file)
    recipes.check_stages(loaded, Path("out"), check)
    expected = {
        "table1": 24, "table2": 24, "table3": 56, "table4": 14, "table5": 12, "table6": 21,
        "figure1": 25, "granularity": 24, "banks": 24, "honest": 28, "mnist": 112,
    }[file.stem.partition("-")[0]]  # fmt: skip
    assert len(loaded.stages) == expected


def test_every_defense_of_refused_converts_and_is_attacked_on_all_draws_that_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    loaded = recipes.load(ROOT / "recipes/refused/mnist.toml")
    draws = dict.fromkeys((row.name for row in loaded.rows), 10)
    draws |= {"none": 1, "none-at": 1, "crossmax": 1, "ensemble": 3, "adp": 3}
    for made in (stage for stage in loaded.stages if stage.needs is None):
        row = made.name.partition("/")[0]
        (tmp_path / row).mkdir()
        assert command([*made.arguments(tmp_path), "--quiet"]) == 0
        known = loaded.cell(row, "known")
        assert known is not None
        found = cost(known, checkpoint.load(tmp_path / made.output))
        assert found is not None
        assert found.backwards == found.images * int(known.options["steps"]) * draws[row]


def test_there_is_a_file_for_every_table() -> None:
    assert len([file for file in FILES if file.parent.name == "paper"]) == 15
    small = {file.name for file in FILES if file.parent.name == "small"}
    assert small == {file.name for file in FILES if file.parent.name == "ci"}
    assert {name.partition("-")[0].partition(".")[0] for name in small} == {
        "table1", "table2", "table3", "table4", "table5", "table6", "figure1", "granularity",
        "banks", "honest",
    }  # fmt: skip


def test_every_recipe_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    known = recipes.shipped()
    assert sorted(known.values()) == FILES
    assert next(iter(known)).startswith("paper/")
    monkeypatch.chdir("/")
    for name in ("small/ci/table3", "recipes/small/ci/table3", "recipes/small/ci/table3.toml"):
        assert recipes.found(Path(name)) == ROOT / "recipes/small/ci/table3.toml"
    with pytest.raises(RequestError, match="did you mean small/table3"):
        recipes.found(Path("small/tabel3"))


def test_where_data_and_code_lie_only_the_machine_and_the_file_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    Path("own/base.toml").write_text(
        '[convert]\nname = "${HERE}/../net.py:make"\n[all]\ndata-dir = "${RLSKIT_DATA_DIR:-here}"\n'
        'data = "folder:${RLSKIT_DATA_DIR:-here}/x"\n'
    )
    Path("one.toml").write_text('extends = "own/base.toml"\n[columns.clean]\neval={}\n[rows.r]\n')
    for place in ("here", "/data"):
        options = recipes.load("one.toml").stages[0].options
        assert options["name"] == "net.py:make"
        assert (options["data-dir"], options["data"]) == (place, f"folder:{place}/x")
        monkeypatch.setenv("RLSKIT_DATA_DIR", "/data")


def test_the_papers_numbers_and_settings() -> None:
    table1 = recipes.load(ROOT / "recipes/paper/table1-svhn.toml")
    assert table1.paper["rls"]["pgd-high"] == 68.5
    assert table1.paper["none"]["ead-high"] == 5.9
    table2 = recipes.load(ROOT / "recipes/paper/table2-mnist.toml")
    assert table2.paper["none"]["pgd-low"] == 66.55
    first, third = (
        recipes.load(ROOT / f"recipes/paper/{name}.toml") for name in ("table1-cifar10", "table3")
    )
    shared = {"fgsm": "fgsm-low", "pgd": "pgd-low", "deepfool": "deepfool", "cw": "cw-low",
              "ead": "ead-low"}  # fmt: skip
    for ours, theirs in shared.items():  # section 4.3: the settings of 4.2
        assert third.paper["rls"][ours] == first.paper["rls"][theirs]
        assert third.cell("rls", ours).options == first.cell("rls", theirs).options  # type: ignore[union-attr]
    train = next(stage for stage in first.stages if stage.name == "rls/train")
    assert train.options["epochs"] == "150"
    assert train.options["group-size"] == "3"
    attack = first.cell("rls", "cw-high")
    assert attack is not None
    assert (attack.options["c"], attack.options["pixel-range"]) == ("0.1", "-1:1")


def test_a_recipe_from_end_to_end(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["run", str(recipe), "--dry-run", "--trust", "-o", "out"]) == 0
    plan = capsys.readouterr().out
    assert "rlskit attack out/rls/rls.safetensors" in plan
    # 61 images x K = 3 and BatchNorm's 61 x 2 and 3 x 10 held out; K = 1, 61 and 3 without banks
    assert "61 images, 335 forward and 183 backward passes" in plan
    assert "61 images, 125 forward and 61 backward passes" in plan
    assert "to run: 11 of 11 stages" in plan
    assert not Path("out").exists()
    nowhere = ["--trust", "-o", "out", "--set", "all.data=folder:nowhere"]
    assert command(["run", str(recipe), "--dry-run", *nowhere]) == 0
    assert "to run: 11 of 11 stages, cost unknown\n" in capsys.readouterr().out

    taught = ["--set", "train.epochs=8", "--set", "train.limit=1000", "--set", "train.lr=0.2"]
    taught += ["--set", "rows.none.train.lr=0.2"]  # one step leaves a network that only guesses
    again = ["run", str(recipe), "--trust", "-o", "out", *taught]
    assert command([*again, "--json", "-", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["rows"]] == ["rls5", "rls", "none"]
    cells = {cell["column"]: cell for cell in found["rows"][1]["cells"]}
    timing = cells["pgd"]["result"]["timing"]
    assert (timing["forwards"], timing["backwards"]) == (1920, 640)
    assert cells["pgd"]["result"]["attack"]["params"]["eps"] == 0.1
    assert found["rows"][0]["cells"][1]["result"]["protocol"] == "multi"

    assert command(again) == 0
    captured = capsys.readouterr()
    assert captured.err.count("up to date") == 11
    assert "paper 70.9" in captured.out

    shutil.rmtree("out/none/pgd")
    assert (
        command(
            ["run", str(recipe), "--trust", "-o", "out", "--set", "columns.pgd.attack.loss=dlrr"]
        )
        == 2
    )
    assert "stage rls/pgd: --loss 'dlrr' is unknown" in capsys.readouterr().err


TAKES = {
    "convert": {"name", "data", "seed"}, "train": {"data", "epochs", "seed"},
    "attack": {"data", "limit", "seed"}, "eval": {"data", "limit"}, "diversity": {"data", "limit"},
}  # fmt: skip


def test_an_option_of_all_is_given_to_the_commands_that_take_it(recipe: Path) -> None:
    sets = ["all.limit=3", "all.seed=7", "all.data=mnist", "all.epochs=5", "attack={}", "train={}"]
    stages = {stage.name: stage.options for stage in recipes.load(recipe, sets, TAKES).stages}
    assert {**stages["none/convert"], "data": 0} == {
        "name": "tiny.py:tiny", "image-size": "8", "defense": "none", "seed": "7", "data": 0,
    }  # fmt: skip
    assert stages["none/train"] == {
        "data": "mnist",
        "seed": "7",
        "epochs": "1",
        "lr": "0.1",
        "limit": "64",
    }
    assert stages["none/clean"] == {"data": "mnist", "limit": "64"}
    assert (stages["none/pgd"]["limit"], stages["none/pgd"]["seed"]) == ("64", "7")
    (every,) = {stage.options["seed"] for stage in recipes.load(recipe, sets).stages}
    assert every == "7"  # without a word on what commands take, every one gets it


def test_an_option_that_no_command_takes_is_refused_with_the_nearest(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RequestError, match=r"all: 'limits' is unknown; did you mean limit\?"):
        recipes.load(recipe, ["all.limits=3"], TAKES)
    for more in ([], ["--dry-run"]):
        asked = ["run", str(recipe), "--trust", "--set", "all.small-images=true", *more]
        assert command([*asked, "--set", "all.n-sample=3"]) == 2
        assert "all: 'n-sample' is unknown; did you mean n-samples?" in capfd.readouterr().err


def test_a_row_measures_its_own_columns_only(recipe: Path) -> None:
    sets = ['rows.none.columns=["pgd"]', "gates.clean={at-least=0.1}"]
    found = recipes.load(recipe, sets)
    assert [s.name for s in found.stages if s.name.startswith("none/")] == [
        "none/convert", "none/train", "none/pgd",
    ]  # fmt: skip
    assert found.cell("none", "clean") is None
    for change, told in (
        ('rows.none.columns=["pdg"]', r"rows.none.columns: 'pdg' is no column; did you mean pgd"),
        ("rows.none.columns=true", "a list of names of columns"),
        ("rows.none.columns=[[1]]", r"rows.none.columns: \[1\] is no column"),
        ('gates.clean={at-least=0.1,rows=["none"]}', "none does not measure it"),
    ):
        with pytest.raises(RequestError, match=told):
            recipes.load(recipe, [*sets, change])
    off = ["rows.rls.columns=[]", "gates.kappa={at-most=0.5}"]
    with pytest.raises(RequestError, match=r"gates.kappa: the row rls5 does not measure it"):
        recipes.load(recipe, off)


def test_the_adaptive_protocol_costs_at_most_all_its_parts_on_all_images(recipe: Path) -> None:
    """What a part breaks spares the next in a run, not in the count."""
    options = {"protocol": "adaptive", "eps": "2/255", "steps": "3", "queries": "20", "limit": "6"}
    stage = replace(recipes.load(recipe).stages[-1], command="attack", options=options)
    model = small_model(2, "rls")
    parts = prepare_adaptive(model, eps="2/255", steps=3, queries=20).parts
    passes = [one.attack.passes(Setting((1, 8, 8), 10, one.n_attacked)) for one in parts]
    (square,) = (found for one, found in zip(parts, passes, strict=True) if one.name == "square")
    assert square.forwards <= 21
    draws = [one.n_attacked for one in parts]
    forwards = sum(n * one.forwards for n, one in zip(draws, passes, strict=True))
    backwards = sum(n * one.backwards for n, one in zip(draws, passes, strict=True))
    # 50 judge the clean image and what each part made of it; ten score clean and worst
    forwards += 50 * (1 + len(parts)) + 2 * 10
    assert cost(stage, model) == Cost(6, 6 * forwards, 6 * backwards, at_most=True)
    lost = replace(stage, options={**options, "surrogate": "none.safetensors"})
    assert cost(lost, model) is None
