"""The configuration: frozen pydantic models, and how a recipe file, the environment and flags become one.

`load_recipe("planet-resnet50", overrides)` reads a named recipe or a YAML file, lays `RAYTRAIN_*` variables over it,
then the overrides of the command line, and returns a validated `Recipe`. Imports neither torch nor ray, and yaml only
where YAML is read or written: the bench trains on machines that have none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from raytrain import storage
from raytrain.errors import ConfigError, did_you_mean

ENV_PREFIX = "RAYTRAIN_"
# Variables with the prefix that are not fields of a recipe.
ENV_OTHER = {"RAYTRAIN_CACHE", "RAYTRAIN_CACHE_GB", "RAYTRAIN_REAL_DATA", "RAYTRAIN_TORCH_INDEX"}


# Flags of commands that are no fields of a recipe.
FLAGS_ONLY = {
    "config",
    "name",
    "resume",
    "restarts",
    "dry-run",
    "print-config",
    "space",
    "num-samples",
    "out",
}
SELECTION = r"\d+(-\d+)?"
SPLIT_NAME = r"^[A-Za-z0-9_.-]+$"
# Stem to the eighth of the tile's size, the rest of the body, the head: fastai 1's groups of a ResNet.
LAYER_GROUPS = 3


class Settings(BaseModel):
    """Base of all configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Augment(Settings):
    """Random changes of training tiles; the defaults are the lesson's."""

    flip: Literal["dihedral", "dihedral-2018", "horizontal", "none"] = Field(
        "dihedral",
        description="dihedral: the 8 symmetries of the square; -2018: the identity twice as often",
    )
    rotate: float = Field(10.0, ge=0, le=180, description="largest rotation either way, degrees")
    zoom: float = Field(1.05, ge=1, le=4, description="largest magnification, a factor")
    lighting: float = Field(
        0.1, ge=0, lt=1, description="largest change of brightness and contrast, a fraction"
    )
    p_affine: float = Field(
        0.75, ge=0, le=1, description="probability of the rotation, and of the zoom"
    )
    p_lighting: float = Field(
        0.75, ge=0, le=1, description="probability of the brightness and contrast change"
    )


class Model(Settings):
    """The network."""

    arch: str = Field(
        "resnet50",
        description="torchvision ResNet, ConvNeXt, EfficientNet or Swin by name; timm:NAME with the extra",
    )
    weights: str = Field(
        "imagenet", description="imagenet (torchvision's IMAGENET1K_V1), none, or a file"
    )
    dropout: float = Field(
        0.5, ge=0, lt=1, description="dropout before the last layer; half of it before the first"
    )
    batch_norm: Literal["worker", "sync", "fixed"] = Field(
        "worker",
        description="normalise by a worker's tiles, by the global batch (GPUs), or by fixed statistics",
    )


class Data(Settings):
    """Which rows are trained on, and how tiles become tensors."""

    split: str = Field("random", description="name of a split of the dataset", pattern=SPLIT_NAME)
    normalize: Literal["imagenet", "none"] = Field(
        "imagenet", description="mean and deviation per channel"
    )
    window_gb: float = Field(
        2.0, gt=0, description="encoded tiles shuffled together where tiles are streamed, gigabytes"
    )
    augment: Augment = Augment()


class Train(Settings):
    """The optimiser and its surroundings, equal for all stages."""

    batch_size: int = Field(64, ge=2, le=65536, description="global batch over all workers, tiles")
    precision: Literal["auto", "bf16", "fp32", "fp64"] = Field(
        "auto", description="auto: bf16 where the processor has it; fp64 is for comparing numbers"
    )
    wd: float = Field(0.01, ge=0, lt=1, description="decoupled weight decay, a fraction of lr")
    optimizer: Literal["adamw"] = Field(
        "adamw", description="AdamW with betas (momentum of the schedule, 0.99)"
    )
    schedule: Literal["one-cycle-2018", "one-cycle-2019"] = Field(
        "one-cycle-2018",
        description="2018: linear warm-up, earlier groups lr/3; 2019: cosine, lr/10",
    )
    drop_last: bool = Field(False, description="drop the last, smaller training batch of an epoch")
    seed: int = Field(
        42, ge=0, lt=2**31, description="seed of order, augmentation, dropout and new weights"
    )
    threads: int | None = Field(
        None, ge=1, le=512, description="torch threads per worker; by default CPUs / workers"
    )
    loss: Literal["bce", "asymmetric", "soft-f2"] = Field("bce", description="what is minimised")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of a target that moves to one half"
    )
    mixup: float = Field(
        0.0, ge=0, le=10, description="alpha of mixup's Beta(alpha, alpha); 0 mixes nothing"
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of averaged weights, which are then judged; 0 averages none",
    )
    clip_norm: float | None = Field(
        None, gt=0, description="largest norm of the gradient of the global batch"
    )
    accumulate: int = Field(
        1, ge=1, le=4096, description="passes a batch is computed in, to save memory"
    )
    execution: Literal["auto", "eager", "graphs", "compiled"] = Field(
        "auto",
        description="how the network runs: by default CUDA graphs or torch.compile where the steps earn it back",
    )
    save_every_s: float | None = Field(
        None,
        ge=0,
        description="seconds between two checkpoints of a stage; by default 60, or 50 times what one costs",
    )
    stall_s: float = Field(
        300.0,
        gt=0,
        description="seconds without a batch after which a worker tells where its threads stand and ends itself",
    )


class Stage(Settings):
    """One entry of the resize schedule."""

    size: int = Field(
        ge=16, le=4096, description="side of the tiles as the network sees them, pixels"
    )
    epochs: int = Field(ge=1, le=10000, description="passes over the training part")
    freeze: StrictBool | StrictInt = Field(
        False,
        description="true: train only the head (and BatchNorm); a number: freeze that many layer groups of 3",
    )
    lr: float | tuple[float, float] = Field(
        description="peak learning rate: a number for the head, a pair spread geometrically over the layer groups"
    )
    start_size: int | None = Field(
        None,
        ge=16,
        le=4096,
        description="size of the first epoch, pixels; rises to `size` in steps of 32",
    )
    batch_size: int | None = Field(
        None, ge=2, le=65536, description="instead of train.batch_size, tiles"
    )
    augment: Augment | None = Field(None, description="where it differs from data.augment")

    @field_validator("lr")
    @classmethod
    def _positive(cls, lr: float | tuple[float, float]) -> float | tuple[float, float]:
        if min(lr if isinstance(lr, tuple) else (lr,)) <= 0:
            raise ValueError("a learning rate must be greater than 0")
        return lr

    @field_validator("freeze")
    @classmethod
    def _head_trains(cls, freeze: bool | int) -> bool | int:
        if not 0 <= freeze < LAYER_GROUPS:
            raise ValueError(
                f"true, false, or a number of layer groups from 0 to {LAYER_GROUPS - 1}"
            )
        return freeze

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.start_size is not None and (self.start_size >= self.size or self.epochs < 2):
            raise ValueError(
                f"start_size {self.start_size} must be below size {self.size}, in a stage of 2 epochs or more"
            )
        return self

    @property
    def frozen_groups(self) -> int:
        """How many of the layer groups, counted from the input, do not train."""
        return LAYER_GROUPS - 1 if self.freeze is True else int(self.freeze)

    def size_at(self, epoch: int) -> int:
        """Side of the training tiles in an epoch (from 1): linear from `start_size` to `size`, a multiple of 32 between."""
        if self.start_size is None or epoch >= self.epochs:
            return self.size
        exact = self.start_size + (self.size - self.start_size) * (epoch - 1) / (self.epochs - 1)
        return (
            self.start_size
            if epoch == 1
            else min(self.size, max(self.start_size, round(exact / 32) * 32))
        )


LESSON_STAGES = (
    Stage(size=128, epochs=5, freeze=True, lr=0.01),
    Stage(size=128, epochs=5, freeze=False, lr=(1e-5, 0.002)),
    Stage(size=256, epochs=5, freeze=True, lr=0.005),
    Stage(size=256, epochs=5, freeze=False, lr=(1e-5, 0.001)),
)


class Recipe(Settings):
    """A complete configuration of a training run. A field left out takes the lesson's value."""

    model: Model = Model()
    data: Data = Data()
    train: Train = Train()
    stages: tuple[Stage, ...] = Field(
        LESSON_STAGES, min_length=1, description="the resize schedule"
    )
    select: str | None = Field(
        None,
        pattern=f"^{SELECTION}$",
        description="run only these stages of the list, such as 3 or 3-4",
    )
    dataset: str | None = Field(
        None, description="dataset directory or URI written by `raytrain ingest`"
    )
    storage: str = Field("runs", description="directory or URI that holds the runs")
    lr: Literal["auto"] | None = Field(
        None,
        description="auto: a range test before each stage finds its peak; a pair keeps its ratio",
    )
    init_from: str | None = Field(
        None, description="start from a checkpoint: a path, RUN or RUN:stage-2-128"
    )
    remap_labels: bool = Field(
        False,
        description="take an --init-from of the same classes in another order: its head's rows change places",
    )
    tiles: Literal["auto", "device", "cache", "stream"] = Field(
        "auto",
        description="where decoded tiles lie: GPU memory, this node's disk, or decoded anew; by size by default",
    )
    num_workers: int = Field(
        1, ge=1, le=4096, description="Ray Train workers, one GPU each where GPUs are used"
    )
    use_gpu: bool | None = Field(None, description="by default GPUs where there are any")

    @model_validator(mode="before")
    @classmethod
    def _stages_name_differences(cls, values: Any) -> Any:
        """Fills the fields that a stage's `augment` leaves out from data.augment, while it is still known which."""
        if not isinstance(values, Mapping) or not isinstance(values.get("stages"), list | tuple):
            return values
        data = values.get("data")
        common = (
            data.get("augment") if isinstance(data, Mapping) else getattr(data, "augment", None)
        )
        common = (
            common
            if isinstance(common, Mapping)
            else common.model_dump()
            if isinstance(common, Augment)
            else {}
        )
        stages = [
            {**stage, "augment": {**common, **stage["augment"]}}
            if isinstance(stage, Mapping) and isinstance(stage.get("augment"), Mapping)
            else stage
            for stage in values["stages"]
        ]
        return {**values, "stages": stages}

    @property
    def selected(self) -> tuple[int, int]:
        """First and last stage to run, counted from 1 over the whole list."""
        if self.select is None:
            return 1, len(self.stages)
        first, _, last = self.select.partition("-")
        return int(first), int(last or first)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The lesson's names: `stage-2-128` is the second stage of size 128 in the whole list."""
        sizes = [stage.size for stage in self.stages]
        return tuple(f"stage-{sizes[: i + 1].count(size)}-{size}" for i, size in enumerate(sizes))

    def batch_size(self, stage: Stage) -> int:
        """Global batch of a stage, tiles."""
        return stage.batch_size or self.train.batch_size

    def at_last_sizes(self) -> Recipe:
        """The same, with every stage at its size from its first epoch on."""
        return self.model_copy(
            update={"stages": tuple(s.model_copy(update={"start_size": None}) for s in self.stages)}
        )

    def augment(self, stage: Stage) -> Augment:
        """Random changes of training tiles in a stage."""
        return stage.augment or self.data.augment

    def to_yaml(self) -> str:
        """This recipe as YAML text that `load_recipe` reads back to an equal recipe."""
        values = self.model_dump(mode="json")
        values["stages"] = [
            {k: v for k, v in stage.items() if v is not None} for stage in values["stages"]
        ]
        import yaml

        return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    files = resources.files("raytrain.recipes").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def load_recipe(source: str | None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a recipe: `overrides` beat `RAYTRAIN_*`, which beat the file, which beats the defaults.

    Args:
        source: a recipe's name, the path of a YAML file, or None for the defaults.
        overrides: nested dictionary with the fields to set, as `Recipe.model_dump` gives them.

    Raises:
        ConfigError: unknown recipe, unreadable YAML, unknown key, value out of range.
    """
    text = _recipe_text(source) if source else ""
    label = source or "the command line"
    values = merge(merge(parse_yaml(text, label), environment()), overrides or {})
    return validate(values, label, text)


def validate(values: Mapping[str, Any], label: str, text: str = "") -> Recipe:
    """Checks nested values against the models. All mistakes are named at once, each with its key (and line).

    Raises:
        ConfigError: with the keys, the values, the allowed ranges and the nearest known key.
    """
    try:
        recipe = Recipe.model_validate(values)
        first, last = recipe.selected
        if 1 <= first <= last <= len(recipe.stages):
            return recipe
    except ValidationError as error:
        raise ConfigError(
            f"{label}: {sentences(error, text)}",
            "a run with a setting that is not understood would not be the run you meant",
            "raytrain train --print-config shows every key with its value",
        ) from None
    raise ConfigError(
        f"--stages {recipe.select}: {label} has the stages 1 to {len(recipe.stages)}",
        "there is nothing to select",
        f"--stages 1-{len(recipe.stages)}",
    )


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lays one nested dictionary over another; lists are replaced as a whole."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def environment(env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The `RAYTRAIN_*` variables as nested values: `RAYTRAIN_TRAIN__BATCH_SIZE=32` sets `train.batch_size`.

    Raises:
        ConfigError: a variable that names no field.
    """
    values: dict[str, Any] = {}
    for name, value in (os.environ if env is None else env).items():
        if not name.startswith(ENV_PREFIX) or name in ENV_OTHER or not value:
            continue
        path = name.removeprefix(ENV_PREFIX).lower().split("__")
        if not _is_leaf(path):
            raise _no_setting(name, value)
        nested: Any = value
        for key in reversed(path):
            nested = {key: nested}
        values = merge(values, nested)
    return values


def _no_setting(name: str, value: str) -> ConfigError:
    """The error of a variable that would be ignored, with what was meant where that can be known."""
    words = name.removeprefix(ENV_PREFIX).lower().split("__")
    what = f"the environment variable {name} names no setting"
    if words[0] == "stages":
        chosen = value if re.fullmatch(SELECTION, value) else "1"
        return ConfigError(
            what,
            "the list of stages comes from a YAML file (--config); a variable only selects from it",
            f"unset {name}; --stages {chosen} or {ENV_PREFIX}SELECT={chosen} selects, `stages:` in the file sets the list",
        )
    flag = words[0].replace("_", "-")
    if len(words) == 1 and flag in FLAGS_ONLY:
        return ConfigError(
            what, f"--{flag} is given on the command line only", f"unset {name}, and give --{flag}"
        )
    leaves = [path for path in _leaves() if path != ["stages"]]
    # RAYTRAIN_WD means train.wd, though other variables look more like it.
    meant = [path for path in leaves if path[-1] == words[-1]] or leaves
    known = [ENV_PREFIX + "__".join(path).upper() for path in meant] + sorted(ENV_OTHER)
    return ConfigError(
        f"{what}.{did_you_mean(name, known)}",
        "it would be ignored silently otherwise",
        f"unset {name}",
    )


def parse_yaml(text: str, label: str) -> dict[str, Any]:
    """Reads YAML text that must be a mapping (or empty).

    Raises:
        ConfigError: broken YAML with its line, or another shape than a mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{label} is not valid YAML{where}: {getattr(error, 'problem', error)}",
            "the recipe cannot be read",
            "correct that line; `raytrain train --print-config` prints a recipe that works",
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{label} holds a {type(values).__name__}, not keys with values",
            "",
            "raytrain train --print-config shows the keys",
        )
    return values


def _recipe_text(source: str) -> str:
    if source in recipe_names():
        return resources.files("raytrain.recipes").joinpath(f"{source}.yaml").read_text()
    if storage.is_uri(source) and storage.exists(source):
        return storage.read_bytes(source).decode()
    path = Path(source).expanduser()
    if path.is_file():
        return path.read_text()
    names = recipe_names()
    raise ConfigError(
        f'no recipe "{source}": it is neither a file nor one of {", ".join(names)}.{did_you_mean(source, names)}',
        "there is nothing to run",
        f"raytrain train --config {names[0]} --print-config",
    )


def _models(
    model: type[BaseModel], prefix: tuple[str, ...] = ()
) -> dict[tuple[str, ...], type[BaseModel]]:
    """Every nested settings model by its path."""
    found = {prefix: model}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= _models(field.annotation, (*prefix, name))
    return found


def _leaves() -> list[list[str]]:
    models = _models(Recipe)
    return [
        [*path, key]
        for path, m in models.items()
        for key in m.model_fields
        if (*path, key) not in models
    ]


def _is_leaf(path: list[str]) -> bool:
    return path in _leaves() and path != ["stages"]


def sentences(error: ValidationError, text: str = "") -> str:
    """What pydantic found wrong, without its vocabulary: key, line in `text`, value, allowed range, nearest key."""
    # A tuple that lost a bad item is reported again as too short; the item itself says enough.
    found = [e for e in error.errors() if e["type"] != "too_short" or error.error_count() == 1]
    return "; ".join(_sentence(e["loc"], e["type"], e["msg"], e.get("input"), text) for e in found)


def _sentence(loc: tuple[int | str, ...], kind: str, message: str, value: Any, text: str) -> str:
    # A tuple[...] | float field reports once per branch and puts the branch's name at the end of the path.
    path = tuple(
        p
        for p in loc
        if isinstance(p, int) or (re.fullmatch(r"\w+", p) and p not in ("float", "tuple"))
    )
    key = ".".join(map(str, path)) or "recipe"
    line = _line_of(path, text)
    where = f"{key} (line {line})" if line else key
    if kind == "extra_forbidden":
        parent = (
            Stage
            if path and path[0] == "stages"
            else _models(Recipe).get(tuple(map(str, path[:-1])), Recipe)
        )
        return f'unknown key "{where}".{did_you_mean(str(path[-1]), parent.model_fields)}'
    if kind == "missing":
        return f"{where} is missing"
    message = message.removeprefix("Value error, ")
    return (
        f"{where}: {message}"
        if kind == "value_error" and not path
        else f"{where} = {value!r}: {message}"
    )


def _line_of(path: tuple[int | str, ...], text: str) -> int | None:
    """Line of a key in YAML text, counted from 1; None where the file does not hold it."""
    if not text:
        return None
    import yaml

    node = yaml.compose(text)
    line = None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pair = next((p for p in node.value if p[0].value == part), None)
            if pair is None:
                return None
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif (
            isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value)
        ):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
