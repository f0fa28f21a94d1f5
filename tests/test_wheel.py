"""The wheel: built without network, installed into environments of its own, and run from outside the repository."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import numpy as np
import pytest

from raytrain.config import load_recipe, parse_yaml, validate
from raytrain.evaluation import predictions

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLASSES = ("agriculture", "clear", "cloudy", "primary", "water")
OFFLINE = ("--disable-pip-version-check", "--no-input", "--no-index", "--no-deps")


def pip(*words, python=sys.executable, seconds=120):
    """Runs pip for an environment; it need not have a pip of its own."""
    command = [sys.executable, "-m", "pip", "--python", str(python), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stdout + done.stderr


def python_of(environment):
    """Makes an empty environment and returns its Python."""
    venv.create(environment, with_pip=False, symlinks=True)
    return environment / "bin/python"


class Installed:
    """raytrain in an environment, called from a folder that is not the repository."""

    def __init__(self, environment, folder):
        self.environment = environment
        self.folder = folder
        folder.mkdir()
        # Nothing of the test's own environment: no PYTHONPATH, no RAYTRAIN_ variables.
        self.variables = {
            "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "RAY_AUTH_MODE": "disabled",
        }

    def __call__(self, *words, seconds=120):
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.variables,
            timeout=seconds,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built with the backend that pyproject.toml names, which is one of the development packages."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", *OFFLINE, "--no-build-isolation", "--quiet", "--wheel-dir", folder, ROOT)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel without its dependencies, in an environment that sees the packages of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    python = python_of(folder / "environment")
    pip("install", *OFFLINE, "--quiet", "--no-compile", wheel, python=python)
    (packages,) = (folder / "environment/lib").glob("python*/site-packages")
    # A folder that a .pth file names comes last. Its own .pth files, such as that of an editable
    # raytrain, are not read.
    shared = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "of-the-tests.pth").write_text("\n".join(sorted(shared)))
    return Installed(folder / "environment", folder / "elsewhere")


def test_the_wheel_holds_every_file_of_the_package(wheel):
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "raytrain").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in names if ".dist-info/" not in name} == package
    endings = {name.rpartition(".")[2] for name in package}
    assert {"py", "yaml", "j2", "csv"} <= endings


def test_its_metadata_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(path).decode())
        names = archive.namelist()
    assert metadata["Name"] == "raytrain" and metadata["Version"] == PROJECT["version"]
    assert metadata["Summary"] and metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata["Author"] == "raytrain contributors"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert (ROOT / "README.md").read_text() in metadata.get_payload()
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    classifiers = metadata.get_all("Classifier")
    oldest = re.search(r"3\.\d+", PROJECT["requires-python"])[0]
    assert f"Programming Language :: Python :: {oldest}" in classifiers


def test_the_command_runs_outside_the_repository(installed):
    where = installed("python", "-c", "import raytrain; print(raytrain.__file__)")
    assert Path(where.strip()).is_relative_to(installed.environment)
    assert "synthetic tiles" in installed("raytrain", "quickstart", "--help")


def test_it_prints_a_recipe_of_its_own(installed):
    printed = installed("raytrain", "train", "--config", "planet-resnet50-2018", "--print-config")
    recipe = validate(parse_yaml(printed, "printed"), "printed")
    source = ROOT / "raytrain/recipes/planet-resnet50-2018.yaml"
    assert recipe.stages == load_recipe(str(source)).stages


def test_it_makes_synthetic_tiles_and_a_report(installed):
    draw = "from pathlib import Path; from raytrain.data import synthetic; "
    installed("python", "-c", draw + "synthetic.write(Path('tiles'), 3, seed=1)")
    assert len(list((installed.folder / "tiles").rglob("*.jpg"))) == 3
    rng = np.random.default_rng(0)
    found = predictions.Predictions(
        tuple(f"t{row}" for row in range(40)),
        rng.normal(size=(40, len(CLASSES))).astype("float32"),
        rng.integers(0, 2, (40, len(CLASSES))).astype("uint8"),
        CLASSES,
        {"task": "multi-label"},
    )
    predictions.write(str(installed.folder / "P.parquet"), found)
    assert "report: " in installed("raytrain", "evaluate", "P.parquet", "--out", "judged")
    page = (installed.folder / "judged/report.html").read_text()
    assert page.lstrip().startswith("<!doctype html>") and "agriculture" in page


@pytest.mark.slow
def test_an_empty_environment_gets_all_that_it_needs(wheel, tmp_path):
    """Minutes and up to 7 GB: everything is fetched, in the tested versions."""
    if shutil.disk_usage(tmp_path).free < 12e9:
        pytest.skip("needs 12 GB of free disk")
    python = python_of(tmp_path / "environment")
    index = os.environ.get("RAYTRAIN_TORCH_INDEX")
    pins = ("--quiet", "--constraint", ROOT / "constraints.txt")
    if index:
        torch = ("--no-deps", "--index-url", index, "torch", "torchvision")
        pip("install", *pins, *torch, python=python, seconds=1800)
    pip("install", *pins, wheel, python=python, seconds=1800)
    alone = Installed(tmp_path / "environment", tmp_path / "elsewhere")
    assert "synthetic tiles" in alone("raytrain", "quickstart", "--help")
    alone("raytrain", "quickstart", "--out", "first", seconds=1800)
    assert list((tmp_path / "elsewhere").rglob("report.html"))
