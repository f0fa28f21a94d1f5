"""The configuration: frozen pydantic models, and how a file, the environment and flags fill them.

`load_recipe("planet-resnet50", overrides)` reads a named recipe or a YAML file. `RAYTRAIN_*`
variables override the file, and the flags of the command line override both. The result is a
validated `Recipe`. Fields are also reached by path, such as `train.wd` or `stages.2.lr`; numbers
in a path count from 1.

Imports neither torch nor ray. PyYAML is imported only where YAML is read or written, because
`python -m raytrain.bench` must run on machines without it.
"""

from raytrain.config.differences import different_fields
from raytrain.config.environment import ENV_OTHER, ENV_PREFIX, environment
from raytrain.config.loading import load_recipe, parse_yaml, recipe_names, validate
from raytrain.config.mistakes import as_config_error
from raytrain.config.overrides import (
    field_paths,
    merge,
    nested,
    overridden,
    parse_assignments,
    set_field,
    stage_field_hint,
    with_fields,
)
from raytrain.config.recipe import (
    IMAGENET,
    LAYER_GROUPS,
    LESSON_STAGES,
    NAMED_WEIGHTS,
    OF_DATASET,
    SPLIT_NAME,
    STAGE_ONLY,
    Augment,
    Data,
    Model,
    Normalization,
    Recipe,
    Stage,
    Statistics,
    Train,
    normalization,
)

__all__ = [
    "ENV_OTHER",
    "ENV_PREFIX",
    "IMAGENET",
    "LAYER_GROUPS",
    "LESSON_STAGES",
    "NAMED_WEIGHTS",
    "OF_DATASET",
    "SPLIT_NAME",
    "STAGE_ONLY",
    "Augment",
    "Data",
    "Model",
    "Normalization",
    "Recipe",
    "Stage",
    "Statistics",
    "Train",
    "as_config_error",
    "different_fields",
    "environment",
    "field_paths",
    "load_recipe",
    "merge",
    "nested",
    "normalization",
    "overridden",
    "parse_assignments",
    "parse_yaml",
    "recipe_names",
    "set_field",
    "stage_field_hint",
    "validate",
    "with_fields",
]
