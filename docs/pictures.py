"""Makes the pictures of these pages from synthetic tiles: `python docs/pictures.py`.

It trains `raytrain quickstart` in `--quickstart DIR`, or takes what a run left there. Then it draws
sheets of tiles, takes the curves of the run, and photographs its report. The photographs need
Chromium (Debian: `apt-get install chromium`); nothing else of the project does. All pictures are
PNG files with at most 256 colours in `docs/pictures/`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
sys.path.insert(0, str(HERE.parent))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COLOURS = 256


@dataclass(frozen=True)
class View:
    """What of the report a photograph shows.

    Attributes:
        name: of the picture, without suffix.
        width: of the window, pixels.
        height: of the window, pixels.
    """

    name: str
    width: int
    height: int


# Down to the table of the stages.
VIEWS = (View("report", 1000, 670),)


def main() -> None:
    """Makes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quickstart", default="quickstart", type=Path, metavar="DIR")
    base = parser.parse_args().quickstart
    run = finished_run(base)
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        draw_tiles(base / "dataset", Path(scratch))
        for name in ("losses", "lr"):
            save(Image.open(run / f"{name}.png"), name)
        page = Path(scratch) / "report.html"
        # Of no interest to a reader: where it was made.
        text = (run / "report.html").read_text().replace(str(base.absolute()), "quickstart")
        page.write_text(text)
        for view in VIEWS:
            photograph(page, view, Path(scratch))


def finished_run(base: Path) -> Path:
    """The newest run of `raytrain quickstart` in a directory; trains one if there is none."""
    if not runs_with_report(base):
        raytrain("quickstart", "--out", str(base))
    return runs_with_report(base)[-1]


def runs_with_report(base: Path) -> list[Path]:
    """The finished runs in a directory of `raytrain quickstart`, the newest last."""
    return sorted(report.parent for report in base.glob("runs/*/report.html"))


def draw_tiles(dataset: Path, scratch: Path) -> None:
    """Draws tiles with their labels, and tiles before and after augmentation."""
    sheet = scratch / "sheet.png"
    look = ("--tiles", "12", "--size", "120", "--out", str(sheet))
    raytrain("data", "show", str(dataset), *look)
    save(Image.open(sheet), "tiles")
    augmented = scratch / "augmented.png"
    # Of `planet-resnet50`, which turns and zooms the tiles.
    look = ("--augmented", "--config", "planet-resnet50", "--tiles", "2", "--size", "120")
    raytrain("data", "show", str(dataset), *look, "--out", str(augmented))
    save(Image.open(augmented), "augmented")


def raytrain(*words: str) -> None:
    """Runs a command of raytrain in this process.

    Raises:
        SystemExit: it failed; its message is printed.
    """
    from raytrain.cli.main import run_command

    code = run_command(list(words))
    if code:
        sys.exit(code)


def photograph(page: Path, view: View, scratch: Path) -> None:
    """Photographs the upper part of a page, as a browser with light colours shows it."""
    target = scratch / f"{view.name}.png"
    command = [
        browser(),
        "--headless",
        "--disable-gpu",
        "--hide-scrollbars",
        # Chromium refuses its sandbox to root, and the page is our own.
        "--no-sandbox",
        f"--user-data-dir={scratch / 'browser'}",
        f"--window-size={view.width},{view.height}",
        f"--screenshot={target}",
        page.resolve().as_uri(),
    ]
    subprocess.run(command, check=True, capture_output=True)
    save(Image.open(target), view.name)


def browser() -> str:
    """Path of the browser.

    Raises:
        SystemExit: there is none.
    """
    for name in BROWSERS:
        found = shutil.which(name)
        if found:
            return found
    sys.exit("the photographs need Chromium: apt-get install chromium")


def save(picture: Image.Image, name: str) -> None:
    """Writes a picture with few colours, which takes a third of the bytes."""
    small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    path = PICTURES / f"{name}.png"
    small.save(path, optimize=True)
    print(f"{path.relative_to(HERE.parent)}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
