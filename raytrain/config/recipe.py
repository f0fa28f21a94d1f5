"""The models of a recipe: frozen, with a default, a range and a help text for each field."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

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
from pydantic_core import PydanticCustomError

from raytrain.config.names import wrong_stage_name

SPLIT_NAME = r"^[A-Za-z0-9_.-]+$"
# The stem up to 1/8 of the tile's size, the rest of the body, and the head: fastai 1 splits a
# ResNet into the same three groups.
LAYER_GROUPS = 3
# Fields that exist only in a stage. Whoever gives them to the whole run is told how to set them.
STAGE_ONLY = ("lr", "size", "epochs", "freeze", "start_size")
# Type of the errors about names of stages, which `mistakes.py` answers with a command of their own.
STAGE_NAME_ERROR = "stage_name"


class Settings(BaseModel):
    """Base of all configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# Values of `model.weights` that are not a path.
NAMED_WEIGHTS = ("imagenet", "none")
# Normalisations by name. `dataset` becomes `Statistics` when a run starts.
IMAGENET = "imagenet"
OF_DATASET = "dataset"
NORMALIZATIONS = (IMAGENET, "none", OF_DATASET)


class Statistics(Settings):
    """Mean and standard deviation that normalise each channel, of values from 0 to 1."""

    mean: tuple[float, ...] = Field(min_length=1)
    std: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _of_the_same_channels(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} standard deviations")
        if min(self.std) <= 0:
            raise ValueError("a standard deviation must be greater than 0")
        return self

    def __str__(self) -> str:
        """YAML and JSON, as a recipe and a flag take it."""
        return json.dumps(self.model_dump(mode="json"))


# How pixels are normalised: one of `NORMALIZATIONS`, or numbers of one's own.
Normalization = str | Statistics


def normalization(value: Any) -> Normalization:
    """Reads a normalisation, as a recipe, a flag or meta.json of a checkpoint gives it.

    Args:
        value: a name, a mapping of mean and std, or YAML text of one.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = _mapping(value)
    if isinstance(value, Statistics) or value in NORMALIZATIONS:
        found: Normalization = value
        return found
    if not isinstance(value, Mapping):
        raise ValueError(
            f"one of {', '.join(NORMALIZATIONS)}, or {{mean: [...], std: [...]}} "
            "with a number for each channel"
        )
    try:
        return Statistics.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{key}: " for key in first["loc"][:1])
        raise ValueError(where + first["msg"].removeprefix("Value error, ")) from None


def _mapping(text: str) -> Any:
    from yaml import YAMLError

    from raytrain.config import yaml_values

    try:
        return yaml_values.load(text)
    except YAMLError:
        raise ValueError("this is not valid YAML, such as {mean: [0.5], std: [0.2]}") from None


def by_label(values: Any) -> Any:
    """Numbers by label as a recipe or a variable gives them, before they are checked.

    Args:
        values: a mapping, or one that is written as YAML, as in an environment variable.

    Returns:
        The mapping with labels as text: YAML reads the label 7 as a number. Anything else as it is.
    """
    if isinstance(values, str):
        from yaml import YAMLError

        from raytrain.config import yaml_values

        try:
            values = yaml_values.load(values)
        except YAMLError:
            raise ValueError("not a mapping in YAML, such as {label: 2}") from None
    if not isinstance(values, Mapping):
        return values
    return {str(label): number for label, number in values.items()}


class Augment(Settings):
    """Random changes of training tiles; the defaults are the lesson's."""

    # fastai 1.0.21 drew the symmetry from 0..8 and mapped the ninth to the identity.
    flip: Literal["dihedral", "dihedral-2018", "horizontal", "none"] = Field(
        "dihedral",
        description="dihedral: the 8 symmetries of a square; "
        "dihedral-2018: the same, with the identity twice as likely",
    )
    rotate: float = Field(
        10.0, ge=0, le=180, description="maximum rotation in either direction, degrees"
    )
    zoom: float = Field(1.05, ge=1, le=4, description="maximum zoom factor")
    # fastai's max_warp. From 0.366 on, the vanishing line could cross the tile.
    warp: float = Field(
        0.0,
        ge=0,
        le=0.3,
        description="maximum shift of a corner by a perspective warp, in half tile sides",
    )
    lighting: float = Field(
        0.1, ge=0, lt=1, description="maximum change of brightness and contrast, a fraction"
    )
    p_affine: float = Field(
        0.75,
        ge=0,
        le=1,
        description="probability of a rotation, and separately of a zoom and of a warp",
    )
    p_lighting: float = Field(
        0.75, ge=0, le=1, description="probability of a brightness and contrast change"
    )


class Model(Settings):
    """The network."""

    # Checked when the network is built: the list of names needs torchvision.
    arch: str = Field(
        "resnet50",
        description="torchvision ResNet, ConvNeXt, EfficientNet or Swin by name, "
        "or timm:NAME with the timm extra",
    )
    weights: str = Field(
        "imagenet",
        description="initial weights: imagenet (torchvision's IMAGENET1K_V1), none, or a file",
    )
    dropout: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="dropout before the head's last layer; half of it before the first",
    )
    batch_norm: Literal["worker", "sync", "fixed"] = Field(
        "worker",
        description="BatchNorm statistics: of each worker's tiles, of the global batch "
        "(sync, GPUs only), or fixed",
    )


class Data(Settings):
    """Which rows are trained on, and how tiles become tensors."""

    split: str = Field(
        "random", description="name of the dataset's split to train on", pattern=SPLIT_NAME
    )
    normalize: Normalization = Field(
        IMAGENET,
        description="mean and standard deviation that normalise each channel: imagenet "
        "(three channels), none, dataset (those of the training tiles), "
        "or {mean: [...], std: [...]}",
    )
    # 2 GB hold all of Planet's encoded training tiles: its order is then as if cached.
    window_gb: float = Field(
        2.0,
        gt=0,
        description="shuffle window for streamed tiles, gigabytes of encoded tiles",
    )
    stored_size: int | None = Field(
        None,
        ge=16,
        le=4096,
        description="side at which decoded tiles are kept, pixels; default: that of the dataset, "
        "or of the largest stage if the dataset's is more than twice as large",
    )
    repeat: dict[str, Annotated[int, Field(ge=1, le=100)]] = Field(
        {},
        description="how often an epoch shows the training tiles of a label, "
        "such as {blow_down: 4}; of several labels, the largest number counts",
    )
    augment: Augment = Augment()

    @field_validator("normalize", mode="before")
    @classmethod
    def _known_normalization(cls, value: Any) -> Normalization:
        return normalization(value)

    @field_validator("repeat", mode="before")
    @classmethod
    def _written_by_label(cls, repeat: Any) -> Any:
        return by_label(repeat)


class Train(Settings):
    """The optimiser and its surroundings, the same for all stages."""

    # At least 2: BatchNorm needs two tiles to estimate a variance.
    batch_size: int = Field(
        64, ge=2, le=65536, description="global batch size, tiles over all workers"
    )
    precision: Literal["auto", "bf16", "fp32", "fp64"] = Field(
        "auto", description="auto: bf16 if the processor supports it; fp64: to compare numbers"
    )
    wd: float = Field(
        0.01, ge=0, lt=1, description="decoupled weight decay: a step shrinks weights by lr * wd"
    )
    optimizer: Literal["adamw"] = Field(
        "adamw", description="AdamW; beta1 follows the schedule's momentum, beta2 is 0.99"
    )
    # Named after the years in which fastai 1 had these one-cycle policies as its default.
    schedule: Literal["one-cycle-2018", "one-cycle-2019"] = Field(
        "one-cycle-2018",
        description="2018: linear warm-up, earlier layer groups at lr/3; "
        "2019: cosine warm-up, at lr/10",
    )
    drop_last: bool = Field(
        False, description="drop the last training batch of an epoch if it is smaller"
    )
    seed: int = Field(
        42,
        ge=0,
        lt=2**31,
        description="random seed for shuffling, augmentation, dropout and new weights",
    )
    threads: int | None = Field(
        None, ge=1, le=512, description="torch threads per worker; default: CPUs / workers"
    )
    # Checked against the task that the dataset states.
    loss: str | None = Field(None, description="loss function; default: the task's own")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="label smoothing: fraction by which targets move towards 0.5"
    )
    # A mapping only in a file, a variable or --set.
    class_weights: Literal["none", "balanced"] | dict[str, Annotated[float, Field(gt=0)]] = Field(
        "none",
        description="weights of classes in the loss: balanced by the training part, "
        "or numbers, such as {blow_down: 5}",
    )
    # Zhang et al. 2018.
    mixup: float = Field(
        0.0, ge=0, le=10, description="alpha of mixup's Beta(alpha, alpha); 0 disables mixup"
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of averaged weights (EMA), which are then evaluated; 0 disables EMA",
    )
    clip_norm: float | None = Field(
        None, gt=0, description="maximum gradient norm of the global batch"
    )
    accumulate: int = Field(
        1, ge=1, le=4096, description="gradient accumulation: passes per batch, to save memory"
    )
    execution: Literal["auto", "eager", "graphs", "compiled"] = Field(
        "auto",
        description="how the network runs; auto: CUDA graphs or torch.compile when it pays off",
    )
    save_every_s: float | None = Field(
        None,
        ge=0,
        description="seconds between checkpoints within a stage; "
        "default: 60, or 50 times the cost of one if that is longer",
    )
    stall_s: float = Field(
        300.0,
        gt=0,
        description="seconds without a batch before a worker writes its stack traces and exits",
    )

    @field_validator("class_weights", mode="before")
    @classmethod
    def _written_by_label(cls, weights: Any) -> Any:
        if weights in ("none", "balanced"):
            return weights
        if not isinstance(weights, str):
            return by_label(weights)
        if not weights.lstrip().startswith("{"):
            raise ValueError("none, balanced, or numbers by label, such as {blow_down: 5}")
        return by_label(weights)


class Stage(Settings):
    """One entry of the resize schedule."""

    size: int = Field(ge=16, le=4096, description="side length of the tiles, pixels")
    epochs: int = Field(ge=1, le=10000, description="number of epochs")
    # Strict, so that the text "1" or the float 1.0 is refused instead of becoming true.
    freeze: StrictBool | StrictInt = Field(
        False,
        description="true: train only the head (and BatchNorm); "
        "a number: freeze that many of the 3 layer groups",
    )
    lr: float | tuple[float, float] = Field(
        description="peak learning rate of the head, "
        "or a pair spread geometrically over the layer groups"
    )
    start_size: int | None = Field(
        None,
        ge=16,
        le=4096,
        description="tile size of the first epoch, pixels; grows to `size` in steps of 32",
    )
    batch_size: int | None = Field(
        None, ge=2, le=65536, description="global batch size of this stage, tiles"
    )
    augment: Augment | None = Field(None, description="fields that differ from data.augment")
    name: str | None = Field(
        None,
        description="name of the stage and of its checkpoint, such as stage-1-256-rn50; "
        "default: the lesson's name, such as stage-1-256",
    )

    @field_validator("lr")
    @classmethod
    def _positive(cls, lr: float | tuple[float, float]) -> float | tuple[float, float]:
        rates = lr if isinstance(lr, tuple) else (lr,)
        if min(rates) <= 0:
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

    @field_validator("name")
    @classmethod
    def _allowed_name(cls, name: str | None) -> str | None:
        why = ""
        if name is not None:
            why = wrong_stage_name(name)
        if why:
            raise stage_name_error(f"a name that {why}")
        return name

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.start_size is None:
            return self
        # A stage of one epoch would have two sizes at once.
        if self.start_size >= self.size or self.epochs < 2:
            raise ValueError(
                f"start_size {self.start_size} must be below size {self.size}, "
                "in a stage of 2 epochs or more"
            )
        return self

    @property
    def frozen_groups(self) -> int:
        """How many of the layer groups, counted from the input, do not train."""
        # True equals 1 in Python, but means all groups except the head.
        if self.freeze is True:
            return LAYER_GROUPS - 1
        return int(self.freeze)

    def size_at(self, epoch: int) -> int:
        """Side length of the training tiles in an epoch, pixels.

        It grows linearly from `start_size` to `size`; sizes in between are multiples of 32.

        Args:
            epoch: counted from 1.
        """
        if self.start_size is None or epoch >= self.epochs:
            return self.size
        if epoch == 1:
            return self.start_size
        progress = (epoch - 1) / (self.epochs - 1)
        exact = self.start_size + (self.size - self.start_size) * progress
        # 32 is the total stride of the networks: other sizes would waste a border of the tile.
        rounded = round(exact / 32) * 32
        return min(self.size, max(self.start_size, rounded))


# fast.ai's course v3, lesson 3: the notebook lesson3-planet.
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
        LESSON_STAGES, min_length=1, description="the resize schedule, a list of stages"
    )
    # The flag is --stages; `stages` itself is the list.
    select: str | None = Field(
        None,
        description="train only these stages of the list, such as 3 or 3-4, or the one of a name",
    )
    metrics: tuple[str, ...] = Field(
        (),
        description="further metrics of the validation, module:function each, "
        "on (probabilities, targets)",
    )
    dataset: str | None = Field(
        None, description="dataset directory or URI written by `raytrain ingest`"
    )
    storage: str = Field("runs", description="directory or URI in which runs are stored")
    lr: Literal["auto", "lesson"] | None = Field(
        None,
        description="find each stage's peak learning rate with a range test; "
        "auto: a tenth of the minimum, a pair keeps its ratio; "
        "lesson: the steepest fall, and after unfreezing a new pair",
    )
    init_from: str | None = Field(
        None, description="start from the weights of a checkpoint: a path, RUN or RUN:stage-2-128"
    )
    remap_labels: bool = Field(
        False,
        description="accept --init-from with the same classes in another order, "
        "and reorder the rows of its head",
    )
    tiles: Literal["auto", "device", "cache", "stream"] = Field(
        "auto",
        description="where decoded tiles are kept: in GPU memory, on the node's disk, "
        "or nowhere (stream); auto: by size",
    )
    num_workers: int = Field(
        1, ge=1, le=4096, description="number of Ray Train workers; on GPUs, each has one"
    )
    max_workers: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="train with up to this many workers, as machines come and go; "
        "--num-workers 2:8 sets both numbers",
    )
    use_gpu: bool | None = Field(None, description="train on GPUs; default: if there are any")
    mlflow: str | None = Field(
        None,
        description="record the run in MLflow at this address, such as http://HOST:5000 or "
        "sqlite:////data/mlflow.db",
    )

    @model_validator(mode="before")
    @classmethod
    def _complete_augment_of_stages(cls, values: Any) -> Any:
        """Fills the fields that a stage's `augment` leaves out from data.augment.

        Runs before validation: afterwards nobody knows which fields were left out.
        """
        if not isinstance(values, Mapping) or not isinstance(values.get("stages"), list | tuple):
            return values
        common = _common_augment(values.get("data"))
        stages = []
        for stage in values["stages"]:
            if isinstance(stage, Mapping) and isinstance(stage.get("augment"), Mapping):
                stage = {**stage, "augment": {**common, **stage["augment"]}}
            stages.append(stage)
        return {**values, "stages": stages}

    @model_validator(mode="before")
    @classmethod
    def _workers_of_a_range(cls, values: Any) -> Any:
        """Divides num_workers = "2:8" into the two numbers."""
        if not isinstance(values, Mapping):
            return values
        matched = re.fullmatch(r"(\d+):(\d+)", str(values.get("num_workers")))
        if matched is None:
            return values
        return {**values, "num_workers": int(matched[1]), "max_workers": int(matched[2])}

    @model_validator(mode="after")
    def _workers_are_a_range(self) -> Self:
        if self.max_workers is not None and self.max_workers < self.num_workers:
            raise ValueError(
                f"max_workers = {self.max_workers} is less than num_workers = {self.num_workers}"
            )
        return self

    @property
    def most_workers(self) -> int:
        """Largest number of workers that may train."""
        return self.max_workers or self.num_workers

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        # Some file systems do not tell upper from lower case.
        numbers: dict[str, int] = {}
        for number, name in enumerate(self.stage_names, 1):
            other = numbers.setdefault(name.casefold(), number)
            if other != number:
                raise stage_name_error(
                    f'the stages {other} and {number} both have the name "{name}"'
                )
        return self

    @property
    def selected(self) -> tuple[int, int]:
        """First and last stage to train, counted from 1 over the whole list."""
        if self.select is None:
            return 1, len(self.stages)
        names = self.stage_names
        if self.select in names:
            number = names.index(self.select) + 1
            return number, number
        first, _, last = self.select.partition("-")
        return int(first), int(last or first)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of all stages: their own, or those of `default_stage_names`."""
        names = []
        for stage, default in zip(self.stages, self.default_stage_names, strict=True):
            names.append(stage.name or default)
        return tuple(names)

    @property
    def default_stage_names(self) -> tuple[str, ...]:
        """The lesson's names: `stage-2-128` is the second stage of size 128 in the whole list.

        They count stages with a name of their own, too.
        """
        names = []
        count_by_size: dict[int, int] = {}
        for stage in self.stages:
            count_by_size[stage.size] = count_by_size.get(stage.size, 0) + 1
            names.append(f"stage-{count_by_size[stage.size]}-{stage.size}")
        return tuple(names)

    def stage(self, number: int) -> Stage:
        """The stage of a number, counted from 1 over the whole list.

        Raises:
            IndexError: there is no such stage.
        """
        # Without this check, 0 would be index -1: the last stage.
        if number < 1:
            raise IndexError(f"stages are counted from 1, and this is {number}")
        return self.stages[number - 1]

    def selected_stages(self) -> list[tuple[int, Stage]]:
        """The stages to train, each with its number, counted from 1 over the whole list."""
        first, last = self.selected
        return [(number, self.stage(number)) for number in range(first, last + 1)]

    def batch_size(self, stage: Stage) -> int:
        """Global batch size of a stage, tiles."""
        return stage.batch_size or self.train.batch_size

    def augment(self, stage: Stage) -> Augment:
        """Random changes of training tiles in a stage."""
        return stage.augment or self.data.augment

    def at_last_sizes(self) -> Recipe:
        """The same recipe with every stage at its full size from its first epoch on."""
        stages = tuple(stage.model_copy(update={"start_size": None}) for stage in self.stages)
        return self.model_copy(update={"stages": stages})

    def without_stage_names(self) -> Recipe:
        """The same recipe with the lesson's names of all stages."""
        stages = tuple(stage.model_copy(update={"name": None}) for stage in self.stages)
        return self.model_copy(update={"stages": stages})

    def to_yaml(self) -> str:
        """This recipe as YAML text that `load_recipe` reads back to an equal recipe."""
        import yaml

        values = self.model_dump(mode="json")
        values["stages"] = [_without_empty(stage) for stage in values["stages"]]
        return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)


def stage_name_error(text: str) -> PydanticCustomError:
    """The error about the name of a stage, with a sentence that says what is wrong."""
    return PydanticCustomError(STAGE_NAME_ERROR, "{text}", {"text": text})


def _common_augment(data: Any) -> dict[str, Any]:
    """The fields of data.augment, given as nested values or as models; {} where it is left out."""
    augment: Any = None
    if isinstance(data, Mapping):
        augment = data.get("augment")
    elif isinstance(data, Data):
        augment = data.augment
    if isinstance(augment, Augment):
        return augment.model_dump()
    if isinstance(augment, Mapping):
        return dict(augment)
    return {}


def _without_empty(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
