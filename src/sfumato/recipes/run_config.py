"""What a run is: its data, its recipe, its bookkeeping. Torch-free; the whole `config.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import cattrs
import tomli_w

from sfumato.errors import CheckpointError, ConfigError
from sfumato.files import write_text
from sfumato.recipes.config import Recipe
from sfumato.recipes.toml import from_toml, strict_converter, to_toml

T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and how they become one shape."""

    data: str = ""
    """A folder, zip, .npy, .npz or IDX file of images, tar shards (a folder, pattern or URL), or
    fashion-mnist:train (built in)."""
    test: str = ""
    """Images held out of training, of the same kind: the report measures against them."""
    size: tuple[int, int] | None = None
    """Height and width; needed where the images differ in size."""
    fit: Literal["crop", "stretch", "strict"] = "crop"
    """How images of another size become that size."""
    alpha: Literal["drop", "keep"] = "drop"
    """What happens to transparency in image files; arrays keep every channel."""
    value_range: tuple[float, float] | None = None
    """Raw values that mean black and white, for floats and signed whole numbers."""
    layout: Literal["NHWC", "NCHW"] | None = None
    """Axis order of 4-D arrays where it cannot be told from the shape."""
    channels: int | None = None
    """Channels expected; an error if the data has others."""
    classes: bool = False
    """Learn labels from sub-folders, dataset.json or a label file, to sample by class."""
    condition: Literal["none", "image"] = "none"
    """image: learn the images of target/ given those of the same names in input/, both in data's
    folder (or target.npy given input.npy)."""
    input_range: tuple[float, float] | None = None
    """As value_range, for the inputs of pairs."""
    input_channels: int | None = None
    """As channels, for the inputs of pairs."""


@dataclass(frozen=True)
class Bookkeeping:
    """When to look, save and stop."""

    minutes: float = 0.0
    """Stop after so many minutes of training in all, the decay fitted to them; 0: no limit.
    Measuring and the report come on top."""
    log_every: int = 50
    """Steps between lines of log.jsonl."""
    sample_every: int = 0
    """Steps between sample grids; 0: about five over the run."""
    save_every: int = 0
    """Steps between checkpoints; 0: about every five minutes."""
    keep: int = 3
    """How many checkpoints to keep."""
    report: bool = True
    """Write report.html at the end."""
    report_samples: int = 256
    """Images drawn for the report (and its Fréchet distance); 2,000 or more make it meaningful."""
    eval_every: int = 0
    """Steps between measurements of the Fréchet distance, each on eval-n new images; 0: none.
    The best checkpoint is kept."""
    eval_n: int = 2000
    """Images drawn for each of them (costs what sfumato sample -n takes)."""
    eval_features: str = "efficientnet"
    """What looks at them: efficientnet, inception:FILE, dinov2:FILE, classifier, FILE.pt, .onnx."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    threads: int = 0
    """CPU threads; 0 is PyTorch's default."""
    compile: Literal["auto", "on", "graphs", "off"] = "auto"
    """on: compile the network for training, by torch.compile, which takes a minute or several;
    graphs: replay it as CUDA graphs, which needs one process and whole batches. auto: on a GPU,
    graphs where there can be; else, without Sfumato's own kernels, on in long runs."""
    fsdp: bool = False
    """Under torchrun, split the weights over the processes (FSDP2): for models that one device
    cannot hold."""
    tensorboard: bool = True
    """Write TensorBoard events where tensorboard is installed."""

    def __post_init__(self) -> None:
        """Refuse counts below what makes sense."""
        least = {"minutes": 0, "log_every": 0, "sample_every": 0, "save_every": 0, "threads": 0}
        least |= {"keep": 1, "report_samples": 1, "eval_every": 0, "eval_n": 2}
        for name, low in least.items():
            value = getattr(self, name)
            if not value >= low:
                raise ConfigError(f"{name} must be {low} or more, not {value}")


@dataclass(frozen=True)
class Arithmetic:
    """What precision "auto" chose: the measurement does not repeat exactly, its answer must."""

    dtype: str
    channels_last: bool

    def __post_init__(self) -> None:
        """Refuse what is no arithmetic."""
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ConfigError(f"unknown arithmetic {self.dtype!r}: float32, bfloat16 or float16")


@dataclass(frozen=True)
class RunConfig:
    """Everything a run was told, and the arithmetic it chose: what config.toml holds."""

    recipe: Recipe
    data: DataConfig = field(default_factory=DataConfig)
    run: Bookkeeping = field(default_factory=Bookkeeping)
    arithmetic: Arithmetic | None = None

    def write(self, path: Path) -> None:
        """Write config.toml, atomically."""
        tables: dict[str, Any] = {
            "data": {k: v for k, v in asdict(self.data).items() if v is not None},
            "run": asdict(self.run),
            "recipe": to_toml(self.recipe),
        }
        if self.arithmetic is not None:
            tables["arithmetic"] = asdict(self.arithmetic)
        write_text(path, tomli_w.dumps(tables))

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """Read config.toml; CheckpointError or ConfigError say what is wrong with it."""
        if not path.is_file():
            raise CheckpointError(
                f"{path.parent} is not a run: it has no {path.name}. "
                "Give the folder that sfumato train printed, for example runs/edm-tiny"
            )
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
        chosen = tables.get("arithmetic")
        return cls(
            from_toml(tables.get("recipe", {})),
            _structure(tables.get("data", {}), DataConfig),
            _structure(tables.get("run", {}), Bookkeeping),
            None if chosen is None else _structure(chosen, Arithmetic),
        )


def _structure(tables: Mapping[str, Any], cls: type[T]) -> T:
    converter = strict_converter()
    try:
        return converter.structure(tables, cls)
    except Exception as error:
        reasons = cattrs.transform_error(error, path="config")
        raise ConfigError("the run's config cannot be read: " + "; ".join(reasons)) from error
