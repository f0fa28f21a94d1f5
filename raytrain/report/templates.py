"""Renders the templates of this folder: pages and model card. Pages need no network and no script.

    render(template, context)    the text of a page
    Plot.of(draw, alt)           a picture in both themes, as the templates take it

Words from outside (labels, names, commands) are escaped here. Imports neither torch nor ray.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from raytrain.report.canvas import DARK, LIGHT, Theme
from raytrain.report.numbers import count, duration, score

# Draws a picture in the colours of a theme, as PNG bytes.
Draw = Callable[[Theme], bytes]

# In this order: the ampersand comes first, since the other replacements contain one.
MARKDOWN_ESCAPES = (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "&#96;"))


@dataclass(frozen=True)
class Plot:
    """A picture in both themes as data: URIs, and a description of it."""

    light: str
    dark: str
    alt: str

    @classmethod
    def of(cls, draw: Draw, alt: str) -> Plot:
        """Draws a picture in both themes."""
        return cls.with_light(draw(LIGHT), draw, alt)

    @classmethod
    def with_light(cls, light: bytes, draw: Draw, alt: str) -> Plot:
        """As `of`, for a caller that has the PNG bytes of the light picture already."""
        return cls(_png_uri(light), _png_uri(draw(DARK)), alt)


def render(template: str, context: dict[str, Any], *, autoescape: bool = True) -> str:
    """Fills a template of this folder.

    Args:
        template: file name.
        context: the variables of the template; a missing one is an error.
        autoescape: whether all values are escaped as HTML. The model card is Markdown, which
            jinja2 cannot escape: its template uses the filter `cell` instead.
    """
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = score
    environment.filters["count"] = count
    environment.filters["duration"] = duration
    environment.filters["cell"] = cell
    return environment.get_template(template).render(context)


def cell(value: object) -> str:
    """Escapes words for a cell of a Markdown table: no HTML, no new column, no new line."""
    text = " ".join(str(value).split())
    for char, safe in MARKDOWN_ESCAPES:
        text = text.replace(char, safe)
    return text


def _source(name: str) -> str:
    # importlib.resources, since the package may be installed as a zip.
    return resources.files("raytrain.report").joinpath(name).read_text(encoding="utf-8")


def _png_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()
