"""What a command that runs as a Ray job may write: only places that outlive the job.

`ray job submit --working-dir .` unpacks the folder into a temporary one of the cluster and starts the command there; a
relative place would lie in it and go with it. Imports neither torch nor ray.
"""

from __future__ import annotations

import os

from raytrain import storage
from raytrain.errors import ConfigError

# Set for the entrypoint of a job, and nowhere else: ray/_private/runtime_env/constants.py.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# Where Ray unpacks working directories, below the folder of its session.
UNPACKED = "/runtime_resources/working_dir_files/"


def check_written(flag: str, path: str) -> None:
    """Refuses a place that a job would write and nobody would find again. Outside a job every place is good.

    Args:
        flag: that names the place, such as --storage.
        path: as it was given, or the flag's default.

    Raises:
        ConfigError: it is relative, or lies in the job's own folder.
    """
    if JOB_VARIABLE not in os.environ or storage.is_uri(path):
        return
    absolute = storage.absolute(path)
    temporary = UNPACKED in absolute
    relative = not os.path.isabs(os.path.expanduser(path.removeprefix("file://")))
    if not relative and not temporary:
        return
    if temporary:
        why = "the job's folder is a temporary one: what is written there is lost"
        fix = f"{flag} /shared/{storage.name_of(absolute)}, on a disk that every machine reaches, or an s3:// or gs:// URI"
    else:
        why = "a job starts in a folder that Ray chose, on a machine that it chose"
        fix = f"{flag} {absolute}, if that is the folder you mean, or an s3:// or gs:// URI"
    what = (
        "is relative, and this is a Ray job" if relative else "lies in the folder of this Ray job"
    )
    raise ConfigError(f"{flag} {path} {what}", why, fix)
