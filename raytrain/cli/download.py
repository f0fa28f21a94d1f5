"""The command `raytrain download`."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from raytrain.cli.job import check_written
from raytrain.output import outlive_reader


def download(
    what: Literal["planet"],
    /,
    *,
    out: Annotated[str, Parameter(help="local folder to fill")],
    source: Annotated[
        str,
        Parameter(
            name="--from",
            help="competition, dataset, or the path of an archive or folder you already have",
        ),
    ] = "competition",
) -> None:
    """Get Planet's tiles and labels, from Kaggle or from local files."""
    check_written("--out", out)
    from raytrain.data.download import download as run_download

    # A closed terminal must not cost a transfer of gigabytes.
    outlive_reader()
    run_download(out, source)
