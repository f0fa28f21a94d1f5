"""Where the code of a run comes from: the hash of its source, its commit and the job that ran it.

Imports neither torch nor ray.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytrain.machine import source_hash

# Ray sets it for the entrypoint of a job only: ray/_private/runtime_env/constants.py.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# What Ray adds to the metadata of a job: ray/dashboard/modules/job/common.py.
SUBMISSION_KEY = "job_submission_id"
# What `raytrain train --print-submit` adds.
COMMIT_KEY = "commit"
# Follows the commit where files of the package differ from it.
CHANGED = "+changed"
# The folder that a checkout of raytrain and an upload of it have in common.
CHECKOUT = Path(__file__).parents[1]


def lineage(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Returns what env.json keeps: `source`, `commit` and `submission_id`, which may be None.

    Args:
        environment: of this process.
    """
    metadata = job_metadata(environment)
    return {
        "source": source_hash(),
        "commit": commit() or metadata.get(COMMIT_KEY),
        "submission_id": metadata.get(SUBMISSION_KEY),
    }


def commit(checkout: Path = CHECKOUT) -> str | None:
    """Returns the commit of a checkout of raytrain.

    Args:
        checkout: folder that the package lies in.

    Returns:
        Its hash, followed by `CHANGED` where files of the package differ from it. None if the
        folder is no checkout, or git is not installed.
    """
    # The folder itself: an installed package may lie in the checkout of another project.
    if not (checkout / ".git").exists():
        return None
    found = _git(checkout, "rev-parse", "HEAD")
    if not found:
        return None
    if _git(checkout, "status", "--porcelain", "--", "raytrain"):
        found += CHANGED
    return found


def _git(checkout: Path, *words: str) -> str:
    """Returns what git prints; empty if it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), *words], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def job_metadata(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the metadata of the Ray job that this process is; empty if it is none."""
    try:
        content = json.loads(environment.get(JOB_VARIABLE, "{}"))
    except ValueError:
        return {}
    found: dict[str, str] = content.get("metadata") or {}
    return found
