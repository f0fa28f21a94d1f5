"""Makes the page `notebook.md` from the notebook of examples/: `python docs/notebook.py`.

It runs the notebook on synthetic tiles, which takes two minutes, and writes each cell with what it
shows. It needs two packages that nothing else of the project needs: `pip install nbclient
ipykernel`.
"""

from __future__ import annotations

import base64
import io
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from pictures import save
from PIL import Image

HERE = Path(__file__).parent
NOTEBOOK = HERE.parent / "examples" / "lesson.ipynb"
PAGE = HERE / "notebook.md"
# A page is not wider, pixels.
WIDEST = 720
# Of a table, pandas writes how Jupyter is to colour it.
STYLE = re.compile(r"<style scoped>.*?</style>\n", re.DOTALL)
ABOUT = """
The notebook is [examples/lesson.ipynb](../examples/lesson.ipynb). To open it, type
`pip install jupyterlab` and `jupyter lab examples/lesson.ipynb` in the shell of `./dev shell`. It
writes into a folder `lesson` beside it. Remove that folder to run it again. Below is what it showed
when it was last run, on two CPU cores.
"""


def main() -> None:
    """Runs the notebook and writes the page and its pictures."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    os.environ["PYTHONPATH"] = str(HERE.parent)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, resources={"metadata": {"path": folder}}).execute()
    parts: list[str] = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source + "\n")
        else:
            parts.append(f"```python\n{cell.source}\n```\n")
            parts.append(printed(cell.outputs))
            for output in cell.outputs:
                if output.output_type != "stream":
                    parts.append(shown(output, number, cell.source))
        if number == 0:
            parts.append(ABOUT.strip() + "\n")
    text = "\n".join(part for part in parts if part)
    # The folder is gone.
    text = text.replace(f"{folder}/", "").replace(str(Path.home()), "~")
    text = text.replace("../docs/", "")
    PAGE.write_text(text)


def printed(outputs: list[Any]) -> str:
    """Returns all lines that a cell prints as one block of Markdown; empty if it prints none."""
    lines = [one.text for one in outputs if one.output_type == "stream" and one.name == "stdout"]
    return _block("".join(lines)) if lines else ""


def shown(output: Any, number: int, source: str) -> str:
    """Returns Markdown for the value of a cell.

    Args:
        output: of the cell, as nbformat has it.
        number: of the cell, for the name of its picture.
        source: of the cell.
    """
    data = output.data
    if "image/png" in data:
        name = f"notebook-{number}"
        picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
        picture.thumbnail((WIDEST, WIDEST))
        save(picture, name)
        return f"![What {source.splitlines()[-1]} shows](pictures/{name}.png)\n"
    if "text/html" in data:
        return STYLE.sub("", data["text/html"]) + "\n"
    return _block(data["text/plain"])


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


if __name__ == "__main__":
    main()
