"""The files of a search that people look at, from those that it keeps: trials.csv, search.html."""

from __future__ import annotations

from raytrain.report import search_page, trials
from raytrain.report.search_record import read_search


def write(directory: str) -> None:
    """Writes trials.csv and search.html of a search that runs or has ended.

    Args:
        directory: of the search.

    Raises:
        DataError: a file of the search is damaged.
        StorageError: the directory cannot be written.
    """
    record = read_search(directory)
    trials.write_trials(record.table, record.setup)
    search_page.write_page(record)
