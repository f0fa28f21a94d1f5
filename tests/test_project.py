"""The project itself: rooms, the size of an upload, the cluster file, `./dev`, rules of the code."""

import ast
import importlib.metadata
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import readability
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("raytrain/**/*.py"), *ROOT.glob("jobs/*.py")])
JOBS = ("ingest", "train", "tune", "predict", "evaluate", "submission", "doctor")
MEGABYTE = 2**20

by_rays_own_code = pytest.mark.skipif(
    not importlib.metadata.version("ray").startswith("2.60."),
    reason="asks private modules of Ray 2.60",
)


# Rooms


def modules(*packages):
    import raytrain

    found = [m.name for m in pkgutil.walk_packages(raytrain.__path__, "raytrain.")]
    return [
        m
        for m in found
        if any(m == f"raytrain.{p}" or m.startswith(f"raytrain.{p}.") for p in packages)
    ]


# Who may import whom: a room imports those that it names, and the ground floor below all of them.
GROUND = {
    *("errors", "registry", "config", "storage", "runs", "runlock", "machine", "output", "log"),
    "control_groups",
    "memory",
    "summaries",
    "lineage",
    "tracking",
}
ROOMS = {
    "data": set(),
    "evaluation": {"data"},
    "worker": set(),
    "models": {"worker"},
    "tasks": {"data", "evaluation", "worker", "models"},
    "tiles": {"data", "worker"},
    "checkpoints": {"data", "evaluation", "worker"},
    "training": {"data", "evaluation", "worker", "models", "tasks", "tiles", "checkpoints"},
    "search": {"evaluation"},
    "report": {"data", "evaluation", "search"},
    "bench": {"data", "worker", "models", "tiles", "checkpoints", "training", "report"},
}
ROOMS["distributed"] = set(ROOMS) - {"report"}
ROOMS["tile_sheets"] = {"data", "training", "report"}
ROOMS["api"] = set(ROOMS)
ROOMS["__init__"] = {"api"}
ROOMS["cli"] = set(ROOMS)


def imported(path):
    """(room, module) of each import of our own in a file, wherever it stands."""
    tree = ast.parse(path.read_text())
    # The registry names types of every room for the type checker, and imports none of them.
    if path.name == "registry.py":
        tree.body = [node for node in tree.body if not isinstance(node, ast.If)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "raytrain":
            modules = [f"raytrain.{name.name}" for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module]
        else:
            continue
        for module in modules:
            if module.startswith("raytrain."):
                yield module.split(".")[1], module


def test_imports_run_one_way():
    package = ROOT / "raytrain"
    found = {
        path.relative_to(package).parts[0].removesuffix(".py") for path in package.rglob("*.py")
    }
    assert found - {"recipes"} == set(ROOMS) | GROUND
    wrong = []
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        # What a run directory holds is read by two modules of the ground floor, which know the dataset's format.
        allowed = GROUND | {room, "data" if room == "runs" else room} | ROOMS.get(room, set())
        wrong += [
            f"{path.name}: {module}" for other, module in imported(path) if other not in allowed
        ]
    assert not wrong


@pytest.mark.parametrize(
    ("rooms", "forbidden"),
    [
        (("data", "evaluation", "report", "search", *sorted(GROUND)), ("torch", "ray")),
        (("worker", "models", "tasks", "tiles", "checkpoints", "training", "bench"), ("ray",)),
        (("cli",), ("torch", "ray", "matplotlib")),
    ],
)
def test_rooms_without_torch_or_ray_import_neither(rooms, forbidden):
    names = modules(*rooms)
    assert len(names) > 0 and {n.split(".")[1] for n in names} == set(rooms)
    code = f"import sys, importlib\nfor n in {names!r}: importlib.import_module(n)\n"
    code += f"print([m for m in {forbidden!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_moving_tiles_imports_no_torch():
    code = "import sys, raytrain.distributed.ingest\nprint('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "False\n"
    )


# What may name a task or its score. Of the rest, titles of papers alone do.
OF_TASKS = re.compile(
    r"registry\.py|evaluation/|recipes/|(tasks|report|data/targets)/(multi|single)_label\.py"
)
TITLES = ("Stratification of Multi-Label Data",)


def test_only_the_files_of_a_task_name_it():
    found = []
    for path in sorted((ROOT / "raytrain").rglob("*.*")):
        name = str(path.relative_to(ROOT / "raytrain"))
        if path.suffix not in (".py", ".j2", ".csv", ".yaml") or OF_TASKS.match(name):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            says = re.search(r"multi.?label|single.?label|\bf2\b", line, re.IGNORECASE)
            if says and not any(title in line for title in TITLES):
                found.append(f"{name}:{number}: {line.strip()}")
    assert found == []


# Jobs and cluster


def test_every_job_calls_the_command_of_its_name_and_names_its_submission():
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == set(JOBS)
    for job in JOBS:
        text = (ROOT / "jobs" / f"{job}.py").read_text()
        body = ast.parse(text).body
        wanted = f"import sys\nfrom raytrain.cli.main import main\nif __name__ == '__main__': main(['{job}', *sys.argv[1:]])"
        assert [ast.dump(node) for node in body[1:]] == [
            ast.dump(node) for node in ast.parse(wanted).body
        ]
        assert f"\nray job submit --working-dir . -- python jobs/{job}.py " in ast.get_docstring(
            ast.parse(text)
        )
        assert len(text.splitlines()) < 25


def test_a_job_takes_the_flags_of_the_command():
    starts = (["jobs/train.py"], ["-c", "from raytrain.cli.main import main; main()", "train"])
    job, command = (
        subprocess.run(
            [sys.executable, *start, "--help"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
        ).stdout
        for start in starts
    )
    assert job == command and "--train.batch-size" in job and "--resume" in job


@by_rays_own_code
def test_what_a_job_uploads_is_small_and_whole(tmp_path):
    from ray._private.runtime_env import packaging

    heavy = {".git", ".venv", ".ray", "runs", "quickstart", "data", "planet", "evaluation"}
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT,
        tree,
        ignore=lambda folder, names: (
            heavy & set(names) if Path(folder) == ROOT else {"__pycache__"}
        ),
    )
    planted = [
        *(
            ".git/objects/pack/a.pack",
            ".venv/lib/libtorch.so",
            "raytrain/__pycache__/cli.pyc",
            ".mypy_cache/a.json",
        ),
        *(
            "runs/x/model.safetensors",
            "runs/x/history.csv",
            "quickstart/tiles/b.jpg",
            "data/a.jpg",
            "data/labels.txt",
        ),
        *(
            "train-jpg/train_0.jpg",
            "tiles/a.tif",
            "planet/shards/part-00000.parquet",
            "test.parquet",
            "train_v2.csv",
        ),
        *("submission.csv", "evaluation/report.html", "resnet18.pth", "train-jpg.tar.7z"),
    ]
    for name in planted:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"0" * MEGABYTE)
    packaging.create_package(
        str(tree), tmp_path / "upload.zip", include_gitignore=True, excludes=[]
    )
    with zipfile.ZipFile(tmp_path / "upload.zip") as archive:
        files = {info.filename: info.file_size for info in archive.infolist()}
    assert [name for name in planted if name in files] == []
    assert sum(files.values()) < 5 * MEGABYTE
    package = {
        str(p.relative_to(ROOT))
        for p in ROOT.glob("raytrain/**/*")
        if p.is_file() and p.suffix != ".pyc"
    }
    assert {
        "raytrain/recipes/planet-resnet50.yaml",
        "raytrain/data/label_sets.csv",
        "raytrain/cli/main.py",
    } <= package
    assert package | {f"jobs/{job}.py" for job in JOBS} <= set(files)


def cluster():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@by_rays_own_code
def test_the_cluster_file_is_valid_for_ray_and_opens_nothing():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(cluster())
    validate_config(config)
    assert "0.0.0.0" not in str(config) and "3.0.0.dev" not in str(
        config
    )  # Ray's defaults bring in both
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    head, worker = [command for command in starts if "ray start" in command]
    assert re.findall(r"--dashboard-host=(\S+)", str(config)) == ["127.0.0.1"]
    assert (
        "--dashboard-host=127.0.0.1" in head
        and "--num-cpus=0" in head
        and "client-server-port" not in head
    )
    assert "RAY_AUTH_MODE=token" in head and "RAY_AUTH_MODE=token" in worker
    assert "RAY_worker_niceness=0" in head and "RAY_worker_niceness=0" in worker
    assert any(
        "chmod 600 ~/.ray/auth_token" in command for command in config["initialization_commands"]
    )


@by_rays_own_code
def test_a_wrong_cluster_file_would_be_noticed():
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(Exception, match="surprise"):
        validate_config(prepare_config(cluster() | {"surprise": 1}))


def test_the_nodes_get_all_that_the_installation_reads():
    config = cluster()
    for remote, local in config["file_mounts"].items():
        assert local.startswith("~") or (
            (ROOT / local).exists() and remote == f"~/raytrain/{local}"
        )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    read = {"pyproject.toml", "constraints.txt", project["project"]["readme"]}
    read |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert read <= set(config["file_mounts"].values())
    assert "rsync_exclude" not in config, (
        "rsync matches a bare name at every depth: `data` would drop raytrain/data"
    )


# ./dev, with a tree, a PATH and a Python of its own

PYTHON = """#!/bin/sh
[ "$1" = -m ] || exit 0
mkdir -p .venv/bin && cp ../venv-python .venv/bin/python
"""
VENV_PYTHON = """#!/bin/sh
echo "$*" >>../log
case "$*" in *"pip install"*) [ ! -e ../offline ] ;; esac
"""
OLD_PYTHON = f"""#!/bin/sh
exec {sys.executable} -c 'import sys; sys.version_info = (3, 10, 9); exec(sys.argv[1])' "$2"
"""
SHIM = "#!/bin/sh\necho 'pyenv: command not found: python3.11' >&2\nexit 127\n"
SITE = "-m sphinx --builder html --fail-on-warning --keep-going --quiet docs build/docs"
TWO_PROCESSES = "--numprocesses 2 --dist loadgroup --no-loadscope-reorder"
NINE_GIGABYTES = (
    "#!/bin/sh\necho 'Filesystem 1024-blocks Used Available'\necho '/dev/sda 99999999 1 9500000'\n"
)
PLENTY = NINE_GIGABYTES.replace("9500000", "95000000")


@pytest.fixture
def dev(tmp_path):
    tree, programs = tmp_path / "a tree", tmp_path / "bin"
    tree.mkdir()
    programs.mkdir()
    for name in ("dev", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tree)
    for name in ("awk", "cat", "cksum", "cp", "dirname", "mkdir", "rm"):
        (programs / name).symlink_to(shutil.which(name))

    def run(*words, **variables):
        return subprocess.run(
            [shutil.which("sh"), tree / "dev", *words],
            capture_output=True,
            text=True,
            cwd="/",
            env={"PATH": str(programs)} | variables,
        )

    run.tree, run.programs = tree, programs
    program(tmp_path / "venv-python", VENV_PYTHON)
    program(programs / "df", PLENTY)
    program(programs / "python3.11", PYTHON)
    return run


def program(path, text):
    path.write_text(text)
    path.chmod(0o755)


def log(dev):
    path = dev.tree.parent / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [line for line in lines if not line.startswith(("-c ", "-m pip --version"))]


@pytest.mark.parametrize("words", [(), ("tests",), ("--help",)])
def test_dev_answers_an_unknown_word_with_its_usage(dev, words):
    done = dev(*words)
    assert (done.returncode, done.stderr) == (
        2,
        "usage: ./dev quickstart | test | lint | docs | shell\n",
    )
    assert not (dev.tree / ".venv").exists()


def test_dev_refuses_an_old_python_in_one_sentence(dev):
    program(dev.programs / "python3.11", SHIM)
    program(dev.programs / "python3", OLD_PYTHON)
    done = dev("test")
    assert done.returncode == 2 and done.stderr.startswith("raytrain needs Python 3.11 or newer")
    assert done.stderr.count("\n") == 1
    assert not (dev.tree / ".venv").exists()


def test_dev_finds_a_python_behind_names_that_fail(dev):
    program(dev.programs / "python3.11", SHIM)
    program(dev.programs / "python3.12", OLD_PYTHON)
    program(dev.programs / "python3", PYTHON)
    assert dev("test").returncode == 0


def test_dev_refuses_a_full_disk_in_one_sentence(dev):
    program(dev.programs / "df", NINE_GIGABYTES)
    done = dev("quickstart")
    assert (
        done.returncode == 5
        and "12 GB" in done.stderr
        and "9 GB" in done.stderr
        and done.stderr.count("\n") == 1
    )
    assert not (dev.tree / ".venv").exists()


def test_dev_installs_once_goes_on_after_an_interruption_and_follows_the_pins(dev):
    install = (
        "-m pip install -q --disable-pip-version-check --no-input -c constraints.txt -e .[dev,docs]"
    )
    (dev.tree.parent / "offline").touch()
    assert dev("test").returncode == 1
    (dev.tree.parent / "offline").unlink()
    program(dev.programs / "df", NINE_GIGABYTES)  # half of the packages are there already
    assert dev("test", "-k", "two words").returncode == 0
    assert log(dev) == [install, install, "-m pytest -k two words"]
    assert dev("test").stderr == "" and log(dev) == [f"-m pytest {TWO_PROCESSES}"]
    (dev.tree / "constraints.txt").write_text("numpy==2.4.6\n")
    dev("lint")
    checks = ["-m ruff check .", "-m ruff format --check .", "-m mypy", SITE]
    assert log(dev) == [install, *checks]
    done = dev("docs")
    assert log(dev) == [SITE] and done.stderr.endswith("build/docs/index.html\n")


def test_dev_takes_only_torch_from_the_index_the_user_names(dev):
    dev("test", RAYTRAIN_TORCH_INDEX="INDEX")
    torch, rest, _ = log(dev)
    assert torch.endswith("-c constraints.txt --no-deps --index-url INDEX torch torchvision")
    assert "INDEX" not in rest


def test_dev_uses_uv_where_there_is_one(dev):
    program(dev.programs / "uv", '#!/bin/sh\necho "uv $*" >>../log\n')
    dev("test")
    assert log(dev) == [
        "uv pip install -q --python .venv/bin/python -c constraints.txt -e .[dev,docs]",
        f"-m pytest {TWO_PROCESSES}",
    ]


def test_the_scripts_can_be_called():
    assert os.access(ROOT / "dev", os.X_OK) and os.access(ROOT / ".ci/run", os.X_OK)


# Rules of the code


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


# The two modules that read files of torch.
LOADERS = (("checkpoints", "reading.py"), ("models", "initial_weights.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_runs_foreign_code(path):
    tree = ast.parse(path.read_text())
    imported = {
        a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names
    }
    members = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    imported |= {str(n.module).split(".")[0] for n in members}
    assert not imported & {"pickle", "cloudpickle", "dill", "joblib"}
    assert not [
        n for n in members if n.module in ("torch", "yaml") and "load" in {a.name for a in n.names}
    ]
    for name, keywords in calls(tree):
        assert name not in ("yaml.load", "eval", "exec", "os.system", "os.popen")
        assert not name.endswith((".extractall", ".read_pickle"))
        assert (
            keywords.get("shell", "False") == "False"
            and keywords.get("allow_pickle", "False") == "False"
        )
        if name == "torch.load":
            assert (path.parent.name, path.name) in LOADERS
            assert keywords["weights_only"] == "True"
        if name == "Image.open":
            assert "formats" in keywords


def test_in_two_processes_each_file_is_one_group(request):
    if not hasattr(request.config, "workerinput"):
        pytest.skip("one process needs no groups")
    # pytest-xdist adds the group to the name of a test, if it saw the mark in time.
    assert request.node.nodeid.endswith("@test_project")


def test_the_code_keeps_the_limits_of_the_readability_score():
    total = readability.Numbers()
    for path in readability.files_of([ROOT / "raytrain", ROOT / "jobs"]):
        total.add(readability.numbers_of(path))
    assert total.lines > 10_000 and total.failures() == []


def test_at_most_ten_exceptions_to_the_linters():
    found = [
        line
        for p in SOURCES
        for line in p.read_text().splitlines()
        if re.search(r"# (type: ignore|noqa)", line)
    ]
    assert all(len(line.split("#")) >= 3 for line in found), "each says why"
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert len(found) + len(tools["ruff"]["lint"]["ignore"]) <= 10


def test_committed_files_name_no_package_registry_and_no_machine():
    if not (ROOT / ".git").exists():
        pytest.skip("only a checkout knows what is committed")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    paths = [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    assert ROOT / "README.md" in paths
    registries = [
        ".".join(host) for host in (("pypi", "org"), ("pythonhosted", "org"), ("anaconda", "org"))
    ]
    registries += [".".join(("download", "pytorch", "org"))]
    machine = re.compile(r"(?<![\w~.$/}-])/(root|home|work|tmp|mnt|opt|Users|workspace)/")
    # Archives and pictures are no text; the scripts that make them leave out what names a machine.
    texts = {path: path.read_text() for path in paths if path.suffix not in (".xz", ".png")}
    assert [
        str(path) for path, text in texts.items() if any(host in text for host in registries)
    ] == []
    assert [
        (path.name, found[0]) for path, text in texts.items() if (found := machine.search(text))
    ] == []


# Versions


def pins():
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), (
        "a pin each, no address, nothing local"
    )
    return {
        name.lower().replace("_", "-"): version
        for name, version in (line.split("==") for line in lines)
    }


def test_the_pins_satisfy_the_bounds_and_so_does_what_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = pins()
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["timm"], *extras["dev"], *extras["docs"]]:
        requirement = Requirement(text)
        pin = pinned[requirement.name.lower().replace("_", "-")]
        assert pin in requirement.specifier, f"{text}: the pin is {pin}"
        if text not in extras["docs"] and requirement.name != "optuna":  # no test imports these
            assert Version(importlib.metadata.version(requirement.name)) in requirement.specifier


def test_every_file_names_the_same_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    readme = (ROOT / "README.md").read_text()
    named = re.findall(r"Ray (\d+\.\d+)", readme)
    assert named and all(pins()["ray"].startswith(f"{version}.") for version in named)
    oldest = re.search(r"Python (3\.\d+) or newer", readme)[1]
    assert SpecifierSet(f">={oldest}") == SpecifierSet(project["requires-python"])
    assert f"({oldest.replace('.', ', ')})" in (ROOT / "dev").read_text()
    assert (
        pins()["ray"]
        in Requirement(re.search(r"'(ray\[.*?)'", str(cluster()["setup_commands"][2]))[1]).specifier
    )
