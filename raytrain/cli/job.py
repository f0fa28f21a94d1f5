"""What a command that runs as a Ray job may write: only paths that outlive the job.

`ray job submit --working-dir .` unpacks the folder into a temporary one of the cluster and starts
the command there. A relative path would lie inside it and be deleted with it. Imports neither
torch nor ray.
"""

from __future__ import annotations

import os

from raytrain import storage
from raytrain.errors import ConfigError
from raytrain.lineage import JOB_VARIABLE

# Where Ray unpacks working directories, below the folder of its session.
UNPACKED = "/runtime_resources/working_dir_files/"


def check_written(flag: str, path: str) -> None:
    """Refuses a path that a job would write and nobody would find again.

    Outside a job every path is accepted.

    Args:
        flag: the flag of the path, such as --storage.
        path: as it was given, or the flag's default.

    Raises:
        ConfigError: it is relative, or lies in the job's own folder.
    """
    if JOB_VARIABLE not in os.environ or storage.is_uri(path):
        return
    absolute = storage.absolute(path)
    is_temporary = UNPACKED in absolute
    is_relative = not os.path.isabs(os.path.expanduser(path.removeprefix("file://")))
    if not is_relative and not is_temporary:
        return
    what = f"{flag} {path} lies in the folder of this Ray job"
    if is_relative:
        what = f"{flag} {path} is relative, and this is a Ray job"
    if is_temporary:
        raise ConfigError(
            what,
            "the job's folder is a temporary one: what is written there is lost",
            f"{flag} /shared/{storage.name_of(absolute)}, on a disk that every machine reaches, "
            "or an s3:// or gs:// URI",
        )
    # A job without --working-dir starts in the home folder of a machine.
    raise ConfigError(
        what,
        "a job starts in a folder that Ray chose, on a machine that it chose",
        f"{flag} {absolute}, if that is the folder you mean, or an s3:// or gs:// URI",
    )
