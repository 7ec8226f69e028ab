"""What several commands take, as one value each: `flat` gives them one option per field."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from rlskit.attacks.options import OPTIONS
from rlskit.cli.flags import (
    DEFAULT_CHECKPOINT,
    BatchSizeOption,
    CheckpointArgument,
    ClassesOption,
    DataDirOption,
    DataOption,
    DeviceOption,
    DownloadOption,
    ExpectCleanOption,
    FailUnderOption,
    ForceOption,
    JsonOption,
    LimitOption,
    ModelOption,
    OutOption,
    PerExampleOption,
    PerImageOption,
    ProgressOption,
    QuietOption,
    RepeatsOption,
    SeedOption,
    ShardOption,
    ShuffleOption,
    SkipBadOption,
    WorkersOption,
    flag,
)

if TYPE_CHECKING:
    from rlskit.data import Data
    from rlskit.evaluation import EvalOptions
    from rlskit.models import BankedModel


@dataclass(frozen=True)
class Network:
    """Which model, and where it computes."""

    checkpoint: CheckpointArgument = DEFAULT_CHECKPOINT
    model: ModelOption = None
    device: DeviceOption = "auto"

    def load(self) -> BankedModel:
        """Return it.

        Raises:
            RequestError: There is no such checkpoint, factory or device.
        """
        return self.beside(self.checkpoint, self.model)

    def beside(self, checkpoint: Path, architecture: str | None = None) -> BankedModel:
        """Return another one, on the same device."""
        import rlskit
        from rlskit.runtime.devices import choose_device

        return rlskit.load(checkpoint, architecture=architecture).to(choose_device(self.device))


@dataclass(frozen=True)
class Images:
    """Which images."""

    data: DataOption = None
    data_dir: DataDirOption = None
    download: DownloadOption = False
    limit: LimitOption = None
    skip_bad: SkipBadOption = False
    classes: ClassesOption = None

    def load(self, model: BankedModel, split: str, order: int | None = None) -> Data:
        """Return a split of them; where nothing names them, of what the model was made for.

        Args:
            model: What they are for.
            split: The split.
            order: The seed of their random order; None for the data set's own.

        Raises:
            RequestError: They are not there, or cannot be read.
        """
        import rlskit

        return rlskit.load_data(
            self.data or model.card.default_data(), split, data_dir=self.data_dir,
            download=self.download, limit=self.limit, skip_bad=self.skip_bad, order=order,
            classes=self.classes,
        )  # fmt: skip


@dataclass(frozen=True)
class Scoring:
    """How answers are scored."""

    repeats: RepeatsOption = 1
    per_example: PerExampleOption = False
    expect_clean: ExpectCleanOption = None
    fail_under: FailUnderOption = None
    batch_size: BatchSizeOption = 128
    num_workers: WorkersOption = 0
    seed: SeedOption = 0
    shard: ShardOption = None
    shuffle: ShuffleOption = False

    @property
    def order(self) -> int | None:
        """The seed of the images' random order; None for the data set's own."""
        return self.seed if self.shuffle else None

    def options(self, n_samples: int | tuple[int, ...] | None) -> EvalOptions:
        """Return the library's options.

        Raises:
            RequestError: One is wrong.
        """
        from rlskit.evaluation import EvalOptions

        return EvalOptions(
            n_samples=n_samples, repeats=self.repeats, batch_size=self.batch_size,
            num_workers=self.num_workers, seed=self.seed, per_example=self.per_example,
            expect_clean=self.expect_clean, gated=self.fail_under is not None,
            shard=self.shard,
        )  # fmt: skip


@dataclass(frozen=True)
class RunOutput:
    """Where the results of a run go."""

    out: OutOption = None
    force: ForceOption = False
    json_to: JsonOption = None
    per_image: PerImageOption = None
    progress: ProgressOption = None
    quiet: QuietOption = False


@dataclass(frozen=True)
class Rows:
    """Marks `**params` as options of attacks.

    Attributes:
        names: Keys of `OPTIONS`.
    """

    names: Iterable[str]


AttackOptions = Annotated[Any, Rows(OPTIONS)]
"""All of them."""


def flat(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Return the command as Typer reads it, with one parameter for every option.

    A parameter that is a dataclass stands for its fields, and `**params` for the rows of `OPTIONS`
    that it is annotated with.
    """
    parameters: list[inspect.Parameter] = []
    sets: dict[str, Any] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if dataclasses.is_dataclass(parameter.annotation):
            sets[parameter.name] = parameter.annotation
            parameters += _fields(parameter)
        elif parameter.kind is parameter.VAR_KEYWORD:
            rows = get_args(parameter.annotation)[1]
            parameters[:0] = map(_of_row, rows.names)
        else:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def called(**given: Any) -> int | None:
        made = {
            name: kind(**{one.name: given.pop(one.name) for one in dataclasses.fields(kind)})
            for name, kind in sets.items()
        }
        return command(**made, **given)

    called.__annotations__ = {}  # they are in the signature, which is quicker to read
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return called


def _fields(parameter: inspect.Parameter) -> Iterator[inspect.Parameter]:
    """Yield the parameters that a set of options stands for, with the defaults of its default."""
    kind = parameter.annotation
    defaults = kind if parameter.default is parameter.empty else parameter.default
    for name, annotation in get_type_hints(kind, include_extras=True).items():
        yield inspect.Parameter(
            name, parameter.KEYWORD_ONLY, default=getattr(defaults, name), annotation=annotation
        )


def _of_row(name: str) -> inspect.Parameter:
    """Return the parameter of an attack's option; None says that it was not given."""
    row, own = OPTIONS[name], flag(name)
    spelled = f"{own}/--no-{own[2:]}" if row.reader.kind is bool else own
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=row.reader.kind | None,
        default=typer.Option(None, spelled, help=row.help, rich_help_panel=row.group),
    )  # fmt: skip
