"""Writes the page of a search: one HTML file with pictures that needs no network and no script.

    write(directory)    <storage>/<name>/search.html

It shows what the files hold, while the search runs and afterwards; see
raytrain/report/search_record.py. Imports neither torch nor ray.
"""

from __future__ import annotations

from typing import Any

from raytrain import storage
from raytrain.config import Recipe
from raytrain.errors import masked
from raytrain.report import search_finalists, search_pictures, search_rows, search_text, trials
from raytrain.report.search_record import SearchRecord, read_search
from raytrain.report.templates import Plot, render

FILE = "search.html"


def write(directory: str) -> str:
    """Writes the page of a search.

    Args:
        directory: path or URI of `<storage>/<name>`.

    Returns:
        The path of search.html.

    Raises:
        ConfigError: as `read_search`.
        DataError: as `read_search`.
        StorageError: the directory cannot be read or written.
    """
    return write_page(read_search(directory))


def write_page(record: SearchRecord) -> str:
    """As `write`, for a caller that has read the directory already."""
    path = storage.join(record.path, FILE)
    storage.write_text(path, render("search.html.j2", _context(record)))
    return path


def _context(record: SearchRecord) -> dict[str, Any]:
    found = search_text.result(record)
    rows = search_rows.rows_of(record, found.trial)
    setup = record.setup
    drawings = search_pictures.drawings(record)
    return {
        "name": setup.name,
        "kind": "search",
        "summary": _summary(record, setup.given),
        "result": found,
        "facts": search_text.facts(record),
        "promise": search_text.promise(record),
        "savings": search_text.savings_table(record),
        "finalists": search_finalists.table(record),
        "stage_titles": search_rows.stage_titles(record),
        "rows": rows.shown,
        "folded": rows.folded,
        "rows_note": rows.note,
        "score": record.score,
        "plots": {name: Plot.of(drawing.draw, drawing.alt) for name, drawing in drawings.items()},
        "captions": {name: drawing.caption for name, drawing in drawings.items()},
        "commands": search_text.commands(record),
        "config": masked(setup.given.to_yaml()),
        "space": _space_text(record),
    }


def _summary(record: SearchRecord, given: Recipe) -> list[str]:
    paths = trials.drawn_paths(record.table)
    sentences = [
        f"A search from {given.model.arch}, {len(given.stages)} stages, "
        f"by {record.score.name} of the validation part."
    ]
    if paths:
        words = ", ".join(trials.path_in_words(path) for path in paths)
        sentences[0] += f" It draws {words}."
    if given.dataset:
        sentences.append(f"Dataset {masked(given.dataset)}.")
    return sentences


def _space_text(record: SearchRecord) -> str:
    import yaml

    content = dict(record.setup.content)
    if not content:
        return ""
    text: str = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110)
    return masked(text)
