"""Names of runs: which are refused, in every command that takes one, and what exists with an odd name all the same."""

import json
import shutil
from contextlib import nullcontext
from itertools import pairwise

import pytest
from handmade import NETWORK, encoded, scene, write_dataset

from raytrain import runs, storage
from raytrain.checkpoints import reading, writing
from raytrain.cli.main import run_command
from raytrain.config import load_recipe
from raytrain.data.dataset import open_dataset
from raytrain.distributed import train
from raytrain.errors import ConfigError
from raytrain.models import networks
from raytrain.tiles.cache import open_store
from raytrain.training.loop import fit
from raytrain.training.services import Hooks
from raytrain.worker import Worker

REFUSED = {
    "": "is empty",
    ".": "another directory",
    "..": "another directory",
    "../up": "the character /",
    "a/b": "the character /",
    "a\\b": "the character \\",
    "a:b": "the character :",
    "what?": "the character ?",
    "a#b": "the character #",
    "100%": "the character %",
    "a*": "the character *",
    " ": "a blank",
    " a": "a blank",
    "a\t": "a blank",
    "a\nb": "cannot be printed",
    "a\x00b": "cannot be printed",
    "a\u202eb": "cannot be printed",
    "a\udcf4": "cannot be printed",
    "-a": "begins with -",
    "~a": "begins with ~",
    "stages": "is reserved",
    "Auto": "is reserved",
    "x" * 300: "has 300 bytes; 237 are the most",
    "ä" * 120: "has 240 bytes; 237 are the most",
}


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_a_name_that_means_something_else_is_refused_with_the_reason(name):
    with pytest.raises(ConfigError) as caught:
        runs.check_name(name)
    assert REFUSED[name] in caught.value.what and len(caught.value.what) < 150
    assert "\n" not in caught.value.what


@pytest.mark.parametrize(
    "name", ["first", "2018 run", "größe", "a.b_c-d", ".hidden", "x" * 237, "auto-1", "stages2"]
)
def test_other_names_are_taken(name):
    assert runs.check_name(name) == name


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--config", "smoke"],
        ["train", "--config", "smoke", "--dry-run"],
        ["train", "--config", "smoke", "--print-config"],
        ["train", "--config", "smoke", "--restarts", "2"],
        ["lr-find", "--config", "smoke"],
        ["tune", "--thresholds", "p.parquet"],
        ["tune", "--config", "smoke", "--space", "space.yaml"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("name", ["", "..", "a:b", "auto", "x" * 300])
def test_every_command_that_names_something_refuses_a_wrong_name_before_it_does_anything(
    command, name, tmp_path, capsys
):
    assert run_command([*command, "--name", name, "--storage", str(tmp_path / "runs")]) == 2
    message = capsys.readouterr().err
    assert "error: the name " in message and "next: --name" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "label", ["a:b", "what? #1", "..", "", "x" * 300, "-", "stages", "größe 2\n"]
)
def test_a_name_of_its_own_is_one_whatever_the_file_of_the_recipe_is_called(label):
    assert runs.check_name(runs.new_name(label))


def a_run(storage, name):
    """A run with a checkpoint, as an earlier version may have made it."""
    path = storage / name
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(load_recipe("smoke", {"storage": str(storage)}).to_yaml())
    meta = {
        "stage": 1,
        "epoch": 1,
        "classes": ["a"],
        "arch": NETWORK,
        "f2": 0.5,
        "task": "multi-label",
    }
    writing.save(str(path / "checkpoints" / "last"), networks.build(NETWORK, 1, 0.5), meta)
    return path


def test_a_list_of_runs_has_a_line_for_each_whatever_its_name(tmp_path, capsys):
    a_run(tmp_path, "a\nb")
    assert run_command(["runs", "list", "--storage", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "a<U+000A>b  no epoch yet\n"


@pytest.mark.parametrize("name", ["a:b", " a ", "auto", "what? #1", "-x", "50%"])
def test_a_run_of_an_odd_name_that_exists_is_listed_shown_and_found(name, tmp_path, capsys):
    path = a_run(tmp_path, name)
    assert run_command(["runs", "list", "--storage", str(tmp_path)]) == 0
    assert f"{name}  no epoch yet" in capsys.readouterr().out
    assert runs.find(name, str(tmp_path)).path == str(path)
    last = str(path / "checkpoints" / "last")
    assert (
        runs.find_checkpoint(name, str(tmp_path))
        == runs.find_checkpoint(f"{name}:last", str(tmp_path))
        == last
    )


def test_a_colon_still_divides_a_run_from_its_checkpoint(tmp_path):
    path = a_run(tmp_path, "a")
    shutil.copytree(path / "checkpoints" / "last", path / "checkpoints" / "best")
    assert runs.find_checkpoint("a:best", str(tmp_path)) == str(path / "checkpoints" / "best")
    with pytest.raises(ConfigError, match='no run "b"'):
        runs.find_checkpoint("b:best", str(tmp_path))


def test_a_user_that_does_not_exist_is_no_home(tmp_path):
    with pytest.raises(ConfigError, match='no run "~nobody-of-this-name"'):
        runs.find("~nobody-of-this-name", str(tmp_path))


# Datasets that have moved


@pytest.fixture
def no_ray(monkeypatch, in_this_process):
    """A run in this process, without a session."""
    monkeypatch.setattr("raytrain.distributed.train.session", nullcontext)
    monkeypatch.setattr("raytrain.distributed.train.check_cluster", lambda recipe, **more: [])


def tiles(seed):
    pictures = [(encoded(scene(seed + i)), "red" if i % 2 else "blue") for i in range(12)]
    return {f"tile_{i}": picture for i, picture in enumerate(pictures)}


PARTS = ["train"] * 8 + ["valid"] * 4


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder with a dataset and a run on it that has the first of its two stages behind it."""
    folder = tmp_path_factory.mktemp("template")
    data = write_dataset(folder / "data", tiles(0), ["blue", "red"], {"random": PARTS})
    changes = {
        "dataset": data.path,
        "storage": str(folder / "runs"),
        "select": "1",
        "train": {"batch_size": 4},
    }
    recipe = load_recipe("smoke", changes | {"model": {"weights": "none", "arch": NETWORK}})
    run = runs.create(recipe, "n", data)
    fit(recipe, data, run.path, Worker(), Hooks())
    config = folder / "runs" / "n" / "config.yaml"
    config.write_text(config.read_text().replace("select: '1'", "select: '1-2'"))
    return folder


@pytest.fixture
def trained(template, tmp_path, no_ray):
    """A copy of the template, which knows no other place."""
    for name in ("data", "runs"):
        shutil.copytree(template / name, tmp_path / name)
    for name in ("config.yaml", "env.json"):
        file = tmp_path / "runs" / "n" / name
        file.write_text(file.read_text().replace(str(template), str(tmp_path)))
    return tmp_path


def resume(folder, *more):
    return run_command(["train", "--resume", "n", "--storage", str(folder / "runs"), *more])


def test_a_run_whose_dataset_is_gone_says_how_to_name_the_new_place(trained, capsys):
    (trained / "data").rename(trained / "moved")
    assert resume(trained) == 3
    message = capsys.readouterr().err
    assert f"is not at {trained / 'data'} any more" in message
    assert f"next: raytrain train --resume n --storage {trained / 'runs'} --dataset NEW" in message


def test_a_moved_dataset_is_taken_and_remembered(trained, monkeypatch, capsys):
    (trained / "data").rename(trained / "moved")
    monkeypatch.chdir(trained)
    assert resume(trained, "--dataset", "moved") == 0
    assert "resuming after stage 1 epoch 1" in capsys.readouterr().out
    run = runs.find("n", str(trained / "runs"))
    assert run.recipe.dataset == str(trained / "moved") and run.recipe.select == "1-2"
    assert "stage-2-32" in run.checkpoints
    # What comes next needs no flag.
    assert resume(trained) == 0
    assert str(trained / "moved") in (trained / "runs" / "n" / "model_card.md").read_text()


@pytest.mark.parametrize(
    "how", ["{moved}", "{moved}/", "file://{moved}", "../{name}/moved", "link"]
)
def test_the_new_place_may_be_written_in_any_way_and_the_old_one_still_be_there(
    trained, how, monkeypatch
):
    shutil.copytree(trained / "data", trained / "moved")
    (trained / "link").symlink_to("moved")
    monkeypatch.chdir(trained)
    seen = []
    monkeypatch.setattr(
        "raytrain.distributed.train._group", lambda *arguments: seen.append(arguments[2]) or {}
    )
    new = how.format(moved=trained / "moved", name=trained.name)
    train.resume(runs.find("n", str(trained / "runs")), {"dataset": new})
    run = runs.find("n", str(trained / "runs"))
    assert run.recipe.dataset == seen[0].dataset == storage.absolute(new)


def test_under_restarts_every_attempt_hears_of_the_new_place(trained, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "raytrain.distributed.supervisor.supervise", lambda *arguments: seen.append(arguments) or 0
    )
    more = ["--dataset", "moved", "--train.stall-s", "900", "--no-use-gpu", "--restarts", "2"]
    assert resume(trained, *more) == 0
    first, again = seen[0][:2]
    assert (
        first == again == ["train", "--resume", "n", "--storage", str(trained / "runs"), *first[5:]]
    )
    words = set(pairwise(first))
    assert {
        ("--dataset", "moved"),
        ("--train.stall-s", "900.0"),
    } <= words and "--no-use-gpu" in first


OTHERS = {
    "other pictures": lambda path: write_dataset(
        path, tiles(50), ["blue", "red"], {"random": PARTS}
    ),
    "another split": lambda path: write_dataset(
        path, tiles(0), ["blue", "red"], {"random": PARTS[::-1]}
    ),
    "no such split": lambda path: write_dataset(path, tiles(0), ["blue", "red"], {"other": PARTS}),
    "no dataset": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_dataset_is_refused_and_nothing_changes(trained, kind, capsys):
    OTHERS[kind](trained / "other")
    before = (trained / "runs" / "n" / "config.yaml").read_text()
    assert resume(trained, "--dataset", str(trained / "other")) == 3
    message = capsys.readouterr().err
    assert str(trained / "other") in message and "next: " in message and "Traceback" not in message
    assert (trained / "runs" / "n" / "config.yaml").read_text() == before


def test_before_its_first_checkpoint_a_run_knows_its_tiles_by_its_environment(trained, capsys):
    shutil.rmtree(trained / "runs" / "n" / "checkpoints")
    OTHERS["another split"](trained / "other")
    assert resume(trained, "--dataset", str(trained / "other")) == 3
    assert "other rows in the parts of its split random" in capsys.readouterr().err
    # A run of an earlier version knows its pictures only.
    env = trained / "runs" / "n" / "env.json"
    content = json.loads(env.read_text())
    del content["split_hash"]
    env.write_text(json.dumps(content))
    OTHERS["other pictures"](trained / "third")
    assert resume(trained, "--dataset", str(trained / "third")) == 3
    assert "other tiles or labels" in capsys.readouterr().err


def test_a_run_goes_on_where_its_storage_and_its_weights_have_moved(trained, capsys):
    config = trained / "runs" / "n" / "config.yaml"
    config.write_text(config.read_text().replace(" weights: none", f" weights: {trained}/gone.pth"))
    config.write_text(
        config.read_text().replace("init_from: null", f"init_from: {trained}/gone/checkpoints/last")
    )
    assert "gone.pth" in config.read_text() and "gone/checkpoints" in config.read_text()
    (trained / "runs").rename(trained / "elsewhere")
    (trained / "elsewhere" / "n").rename(trained / "elsewhere" / "m")
    assert run_command(["train", "--resume", "m", "--storage", str(trained / "elsewhere")]) == 0
    assert "resuming after stage 1 epoch 1" in capsys.readouterr().out
    assert runs.find("m", str(trained / "elsewhere")).recipe.storage == str(trained / "elsewhere")
    assert not (trained / "runs").exists()


def test_what_only_says_how_often_a_run_saves_may_change(trained, capsys):
    assert resume(trained, "--train.stall-s", "900", "--train.save-every-s", "5") == 0
    assert (
        reading.load(str(trained / "runs" / "n" / "checkpoints" / "last")).meta["recipe"]["train"][
            "stall_s"
        ]
        == 900
    )
    assert (
        resume(trained, "--train.stall-s", "900", "--train.wd", "0.5", "--model.dropout", "0.1")
        == 2
    )
    assert "model.dropout, train.wd cannot change now" in capsys.readouterr().err


# The dry run refuses what the command refuses


@pytest.fixture
def dry(trained):
    def run(*more, dataset="data"):
        where = ["--dataset", str(trained / dataset), "--storage", str(trained / "runs")]
        size = ["--train.batch-size", "4", "--model.weights", "none", "--stages", "1"]
        return run_command(["train", "--config", "smoke", "--dry-run", *size, *where, *more])

    return run


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        (["config.yaml"], "raytrain train --resume n --storage "),
        (["folds.json"], "raytrain train --resume n --storage "),
        (["search.yaml"], "raytrain tune --resume n --storage "),
        (["search.yaml", "config.yaml", "trials.csv"], "raytrain tune --resume n --storage "),
        (["trials.csv"], "another --name"),
        (["lr-find/stage-1-32.csv"], "another --name"),
    ],
    ids=["run", "folds", "open search", "finished search", "thresholds", "range test"],
)
def test_the_advice_for_a_taken_name_is_a_command_that_works(files, advice, tmp_path):
    for file in files:
        path = tmp_path / "n" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(ConfigError, match='there is already a run "n"') as caught:
        runs.refuse_taken("n", str(tmp_path))
    assert caught.value.fix.startswith(advice) and caught.value.fix.endswith("another --name")


def test_a_dry_run_refuses_a_name_that_is_taken(dry, capsys):
    assert dry("--name", "n") == 2
    assert 'already a run "n"' in capsys.readouterr().err
    assert dry("--name", "m") == 0


@pytest.mark.parametrize(
    ("cache", "words"),
    [("/proc/raytrain", "cannot write the tile cache"), ("FILE", "cannot write the tile cache")],
)
def test_a_cache_that_cannot_be_written_is_refused_or_passed_over_as_by_the_run(
    dry, trained, cache, words, monkeypatch, capsys
):
    (trained / "file").touch()
    monkeypatch.setenv("RAYTRAIN_CACHE", cache.replace("FILE", str(trained / "file" / "cache")))
    assert dry("--tiles", "cache") == 7
    assert words in capsys.readouterr().err
    assert dry() == 0
    assert f"tiles: streamed from the shards ({words}" in capsys.readouterr().out
    assert dry("--tiles", "stream") == 0
    # The run itself.
    assert resume(trained, "--tiles", "cache") == 7


def test_a_cache_that_is_too_small_is_seen_and_no_store_is_removed(
    dry, trained, monkeypatch, capsys
):
    monkeypatch.setenv("RAYTRAIN_CACHE", str(trained / "cache"))
    assert dry("--tiles", "cache") == 0
    data = open_dataset(str(trained / "data"))
    open_store(data, 64)
    stores = sorted((trained / "cache").glob("*/store.json"))
    assert len(stores) == 1
    monkeypatch.setenv("RAYTRAIN_CACHE_GB", "0.00000001")
    assert dry("--tiles", "cache") == 0  # its store is there
    capsys.readouterr()
    write_dataset(trained / "second", tiles(70), ["blue", "red"], {"random": PARTS})
    assert dry("--tiles", "cache", dataset="second") == 7
    assert "may hold 0.0 GB" in capsys.readouterr().err
    assert sorted((trained / "cache").glob("*/store.json")) == stores
    monkeypatch.setenv("RAYTRAIN_CACHE_GB", "many")
    assert dry(dataset="second") == 2


def test_a_dry_run_refuses_the_memory_of_a_gpu_that_is_not_there(dry, capsys):
    assert dry("--tiles", "device") == 2
    assert "--tiles device needs a GPU" in capsys.readouterr().err


# --resume with --set


def test_set_changes_in_a_resumed_run_what_its_flags_may_change(trained, capsys):
    assert resume(trained, "--set", "train.stall_s=900") == 0
    loaded = reading.load(str(trained / "runs" / "n" / "checkpoints" / "last"))
    assert loaded.meta["recipe"]["train"]["stall_s"] == 900
    for path in ("stages.2.lr", "train.wd", "stages.7.lr"):
        assert resume(trained, "--set", f"{path}=0.5") == 2
        assert f"{path} cannot change now" in capsys.readouterr().err
    assert resume(trained, "--set", "train.stall_s=-1") == 2
    assert "train.stall_s = -1" in capsys.readouterr().err


def test_the_storage_of_a_resumed_run_may_be_set(trained):
    assert run_command(["train", "--resume", "n", "--set", f"storage={trained / 'runs'}"]) == 0


def test_under_restarts_every_attempt_hears_of_set(trained, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "raytrain.distributed.supervisor.supervise", lambda *arguments: seen.append(arguments) or 0
    )
    assert resume(trained, "--set", "train.stall_s=900", "--restarts", "2") == 0
    assert ("--train.stall-s", "900") in set(pairwise(seen[0][0]))
