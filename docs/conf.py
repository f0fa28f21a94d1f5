"""Settings of the documentation site. `./dev docs` builds it; a warning is an error.

The pages are Markdown, so they can also be read where the repository is shown. Two of them are
completed while the site is built, so that nothing is copied by hand: the command line from the
parser (`command_line.py`), and the reference of the Python API from docstrings.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
# For `command_line` beside this file, and for `raytrain` where it is not installed.
sys.path[:0] = [str(HERE), str(HERE.parent)]

project = "raytrain"
html_title = "raytrain"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "command_line"]
# References that lead nowhere are warnings, too. `./dev docs` turns warnings into errors.
nitpicky = True
# Types of other packages, and of ours that have no entry in the reference.
nitpick_ignore_regex = [("py:.*", ".*")]

# Headings get the anchors that they have where the repository is shown.
myst_heading_anchors = 4
# The pages use `...` and `--` as a shell does.
smartquotes = False

# The code has types; docstrings say what they mean.
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False
python_use_unqualified_type_names = True
# Docstrings write `name` for code.
default_role = "code"

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
# All pages in one list on the left: there are few, and a reader sees at once what there is.
html_sidebars = {"**": ["all-pages.html"]}
html_theme_options = {
    "navbar_center": [],
    "navbar_align": "left",
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "footer_start": [],
    "footer_end": [],
}
# Light or dark as the reader's system is; the button in the corner changes it.
html_context = {"default_mode": "auto"}
