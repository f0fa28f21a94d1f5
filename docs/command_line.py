"""The page of the command line, made from the program's own parser while the site is built.

`cli.md` has the introduction. What this extension adds to it is not written to any file, so the
page cannot differ from `raytrain --help`.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAGE = "cli"


def reference() -> str:
    """All commands with their arguments and flags, as Markdown with headings of level two."""
    from raytrain.cli.main import app

    # cyclopts takes the program's name in usage lines from this process, which is Sphinx.
    with mock.patch.object(sys, "argv", ["raytrain"]):
        text = app.generate_docs(output_format="markdown")
    # The site has a table of contents and a heading of its own.
    _, _, text = text.partition("**Commands**:\n")
    text = text.replace("```console\n", "```\n")
    # Not at the beginning of a sentence, where a reader expects a flag.
    text = re.sub(r"\*\*\[required\]\*\*", "*(required)*", text)
    text = re.sub(r"\*\[default: (.*?)\]\*", r"*(default: \1)*", text)
    return re.sub(r"\*\[choices: (.*?)\]\*", r"*(\1)*", text)


def add_reference(app: Sphinx, page: str, source: list[str]) -> None:
    """Appends the reference to the page of the command line, before it is parsed.

    Args:
        app: of Sphinx; not used.
        page: name of the page that is read.
        source: its text, as the only element.
    """
    if page == PAGE:
        source[0] += "\n" + reference()


def outdated(app: Sphinx, env: Any, added: Any, changed: Any, removed: Any) -> list[str]:
    """The page of the command line, always: Sphinx cannot know that the parser has changed."""
    return [PAGE]


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the extension."""
    app.connect("source-read", add_reference)
    app.connect("env-get-outdated", outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
