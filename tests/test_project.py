"""The project itself: rooms, the size of an upload, the cluster file, rules of the code."""

import ast
import importlib.metadata
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("raytrain/**/*.py"), *ROOT.glob("jobs/*.py")])
MEGABYTE = 2**20


def modules(*packages):
    import raytrain

    found = [m.name for m in pkgutil.walk_packages(raytrain.__path__, "raytrain.")]
    return [m for m in found if any(m == f"raytrain.{p}" or m.startswith(f"raytrain.{p}.") for p in packages)]


@pytest.mark.parametrize(
    ("packages", "forbidden"),
    [
        (("data", "evaluation", "report", "errors", "config", "storage", "runs"), ("torch", "ray")),
        (("training",), ("ray",)),
        (("cli",), ("torch", "ray", "matplotlib")),
    ],
)
def test_imports_run_one_way(packages, forbidden):
    names = modules(*packages)
    assert len(names) > 0 and {n.split(".")[1] for n in names} == set(packages)
    code = f"import sys, importlib\nfor n in {names!r}: importlib.import_module(n)\n"
    code += f"print([m for m in {forbidden!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_what_a_job_uploads_is_small_and_whole(tmp_path):
    from ray._private.runtime_env import packaging

    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache"))
    for heavy in (
        "runs/x/checkpoints/last/model.safetensors",
        "data/a.jpg",
        "quickstart/tiles/b.jpg",
        "planet.parquet",
    ):
        (tree / heavy).parent.mkdir(parents=True, exist_ok=True)
        (tree / heavy).write_bytes(b"0" * 6 * MEGABYTE)
    zipped = tmp_path / "upload.zip"
    packaging.create_package(str(tree), zipped, include_gitignore=True, excludes=[])
    import zipfile

    with zipfile.ZipFile(zipped) as archive:
        files = {info.filename: info.file_size for info in archive.infolist()}
    assert sum(files.values()) < 5 * MEGABYTE
    recipes = [f"raytrain/recipes/{p.name}" for p in ROOT.glob("raytrain/recipes/*.yaml")]
    assert {"jobs/train.py", "raytrain/cli.py", "raytrain/data/label_sets.csv", *recipes} <= set(files)
    assert not [
        f for f in files if f.endswith((".jpg", ".parquet", ".safetensors")) or f.startswith((".git/", ".venv"))
    ]


def test_the_cluster_file_is_valid_for_ray_and_opens_nothing():
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = (ROOT / "cluster.yaml").read_text()
    config = yaml.safe_load(text)
    validate_config(prepare_config(config))
    assert "0.0.0.0" not in text and "ray-client-server-port" not in text
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    begun = [command for command in starts if "ray start" in command]
    assert len(begun) == 2 and all("RAY_AUTH_MODE=token" in command for command in begun)
    assert "--dashboard-host=127.0.0.1" in begun[0] and "--num-cpus=0" in begun[0]


def test_a_wrong_cluster_file_would_be_noticed():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text()) | {"surprise": 1}
    with pytest.raises(Exception, match="surprise"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.py")), ids=lambda p: p.stem)
def test_a_job_is_thin_and_takes_the_flags_of_the_command(job):
    assert len(job.read_text().splitlines()) < 25
    helped = [
        subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}
        ).stdout
        for command in (
            [sys.executable, str(job), "--help"],
            [sys.executable, "-c", "from raytrain.cli import main; main()", job.stem, "--help"],
        )
    ]
    assert helped[0] == helped[1] and "--" in helped[0]


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_runs_foreign_code(path):
    tree = ast.parse(path.read_text())
    imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {str(n.module).split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not imported & {"pickle", "cloudpickle", "dill", "joblib"}
    for name, keywords in calls(tree):
        assert name not in ("yaml.load", "eval", "exec") and not name.endswith(".extractall")
        assert keywords.get("shell", "False") == "False"
        if name == "torch.load":
            assert path.name in ("checkpoint.py", "models.py") and keywords["weights_only"] == "True"
        if name == "Image.open":
            assert "formats" in keywords


def test_files_and_functions_stay_short():
    long_files = {str(p) for p in SOURCES if len(p.read_text().splitlines()) > 500}
    lengths = [
        (n.end_lineno - n.lineno + 1, f"{p.name}:{n.name}")
        for p in SOURCES
        for n in ast.walk(ast.parse(p.read_text()))
        if isinstance(n, ast.FunctionDef)
    ]
    assert not long_files
    assert [entry for entry in lengths if entry[0] > 60] == []


def test_at_most_ten_exceptions_to_the_linters():
    found = [line for p in SOURCES for line in p.read_text().splitlines() if re.search(r"# (type: ignore|noqa)", line)]
    assert len(found) <= 10
    assert all(len(line.split("#")) >= 3 for line in found), "each says why"


def test_the_pins_satisfy_the_bounds_and_are_what_is_installed():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        pin = pins[requirement.name.lower()]
        assert requirement.specifier.contains(pin), f"{text}: the pin is {pin}"
        assert Version(importlib.metadata.version(requirement.name)) in requirement.specifier
