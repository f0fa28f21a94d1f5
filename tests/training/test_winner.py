"""The winner of a search, laid out from its stages, is the run that its recipe would leave."""

import json
import shutil

import pytest
from group import TIMES, run_alone
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from test_stages import recipe_of, train_chain, weights

from raytrain import runs, storage
from raytrain.checkpoints import history, joined, reading, winner
from raytrain.cli.main import run_command
from raytrain.evaluation import predictions
from raytrain.report import rates
from raytrain.report.conclude import conclude
from raytrain.training import lr_find, stages

# Of the checkpoints of a run. Where a stage is trained alone, the first is stage-1-32.
NAMES = ("head", "stage-2-32", "last of all")


@pytest.fixture(scope="module")
def both(dataset, tmp_path_factory):
    """(folder, plans): `one` is a real run there, `found` the same recipe laid out from its stages."""
    folder = tmp_path_factory.mktemp("winner")
    recipe = recipe_of(dataset, folder, {"stages.1.name": NAMES[0], "stages.3.name": NAMES[2]})
    runs.create(recipe, "one", dataset)
    run_alone(recipe, folder / "one")
    plans, _ = train_chain(recipe, dataset)
    winner.lay_out(str(folder / "found"), [plan.path for plan in plans], recipe)
    return folder, plans


def events_of(folder):
    """All events below a folder; a record is its length, a checksum, the event and a checksum."""
    found = []
    for file in sorted(folder.rglob("events.out.tfevents.*")):
        content = file.read_bytes()
        position = 0
        while position < len(content):
            size = int.from_bytes(content[position : position + 8], "little")
            found.append(Event.FromString(content[position + 12 : position + 12 + size]))
            position += size + 16
    return found


def test_the_rows_are_those_of_one_run_except_for_times(both):
    folder, _ = both
    one, found = (
        history.read_epochs(str(folder / "one")),
        history.read_epochs(str(folder / "found")),
    )
    assert len(one) == 4
    assert [without_times(row) for row in found] == [without_times(row) for row in one]
    assert history.read_steps(str(folder / "found")) == history.read_steps(str(folder / "one"))
    ranks = [
        [(row.stage, row.epoch, row.rank, row.steps) for row in history.read_ranks(str(path))]
        for path in (folder / "one", folder / "found")
    ]
    assert ranks[0] == ranks[1] and ranks[0]


def without_times(row):
    return {key: value for key, value in row.cells().items() if key not in TIMES}


def test_the_checkpoints_have_the_names_the_weights_and_the_facts_of_one_run(both):
    folder, _ = both
    for name in (*NAMES, "last"):
        path = folder / "found/checkpoints" / name
        assert weights(path) == weights(folder / "one/checkpoints" / name)
        own = json.loads((path / "meta.json").read_text())
        assert own == json.loads((folder / "one/checkpoints" / name / "meta.json").read_text())
        reading.load(str(path))  # every hash of its manifest is right
    named = storage.names(str(folder / "found/checkpoints"), directories=True)
    assert named == storage.names(str(folder / "one/checkpoints"), directories=True)


def test_the_best_checkpoint_is_that_of_the_stage_with_the_best_end(both):
    folder, plans = both
    ends = [stages.find(plan).scores["f2"] for plan in plans]
    name = NAMES[ends.index(max(ends))]
    assert weights(folder / "found/checkpoints/best") == weights(
        folder / "found/checkpoints" / name
    )


def test_weights_are_hard_links_and_survive_the_stages(both):
    folder, plans = both
    own = folder / "found/checkpoints/head/model.safetensors"
    stage = folder / "stages" / plans[0].key / "checkpoints/stage-1-32/model.safetensors"
    assert own.samefile(stage)


def test_laying_out_again_changes_nothing(both):
    folder, plans = both
    before = weights(folder / "found/checkpoints/last")
    rows = (folder / "found/history.csv").read_bytes()
    recipe = runs.find("found", str(folder)).recipe
    winner.lay_out(str(folder / "found"), [plan.path for plan in plans], recipe)
    assert weights(folder / "found/checkpoints/last") == before
    assert (folder / "found/history.csv").read_bytes() == rows


def test_the_range_tests_have_the_names_of_the_recipe_in_the_order_of_the_stages(both, tmp_path):
    folder, plans = both
    copies = []
    for number, plan in enumerate(plans, 1):
        copies.append(str(tmp_path / str(number)))
        shutil.copytree(plan.path, copies[-1])
        stored = plan.recipe.stage_names[-1]
        curve = lr_find.Curve([1e-3, 1e-2], [0.5, 0.4], [0.5, 0.4])
        lr_find.write(f"{copies[-1]}/lr-find", stored, curve, {"valley": number / 100})
    recipe = runs.find("found", str(folder)).recipe
    winner.lay_out(str(tmp_path / "out"), copies, recipe)
    found = rates.read(str(tmp_path / "out"), recipe.stage_names)
    suggested = [(test.stage, test.suggestions["valley"]) for test in found]
    assert suggested == list(zip(NAMES, (0.01, 0.02, 0.03), strict=True))


def test_files_stand_where_links_are_not_possible(both, tmp_path, monkeypatch):
    folder, plans = both
    monkeypatch.setattr(storage, "linked", lambda source, target: False)
    recipe = runs.find("found", str(folder)).recipe
    winner.lay_out(str(tmp_path / "copied"), [plan.path for plan in plans], recipe)
    copied = tmp_path / "copied/checkpoints/head"
    assert weights(copied) == weights(folder / "one/checkpoints/head")
    assert (copied / "model.safetensors").stat().st_nlink == 1


def test_the_name_of_the_search_is_a_run_for_every_command(both, capsys):
    folder, _ = both
    found = folder / "found"
    done = conclude(str(found))
    assert storage.exists(done.report) and (found / "thresholds.json").exists()
    file = predictions.read(str(found / "predictions.parquet"))
    assert file.meta["checkpoint"] == str(found / "checkpoints/last")
    assert run_command(["runs", "show", "found", "--storage", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "last of all" in shown and len(shown.splitlines()) == 2 + 4
    assert runs.find_checkpoint("found", str(folder)) == str(found / "checkpoints/last")
    for name in ("best", "head", "last of all"):
        path = str(found / "checkpoints" / name)
        assert runs.find_checkpoint(f"found:{name}", str(folder)) == path


def test_a_trial_has_its_curves_over_all_stages_and_its_values_in_tensorboard(both, tmp_path):
    _, plans = both
    rows = joined.joined([plan.path for plan in plans])
    facts = joined.TrialFacts({"train.wd": 0.01, "stages.2.lr": [1e-4, 2e-3]}, {"F2": 0.5})
    joined.write_trial_events(str(tmp_path / "trial-3"), rows, facts)
    points = {}
    plugins = {}
    for event in events_of(tmp_path / "trial-3"):
        for value in event.summary.value:
            points.setdefault(value.tag, []).append((event.step, value.simple_value))
            plugins[value.tag] = value.metadata.plugin_data.content
    assert [step for step, _ in points["valid/f2"]] == [1, 2, 3, 4]
    assert [value for _, value in points["valid/f2"]] == pytest.approx(
        [row.scores["f2"] for row in rows.epochs]
    )
    assert [step for step, _ in points["train/loss"]] == list(range(len(rows.steps)))
    assert points["objective/F2"] == [(0, 0.5)]
    told = HParamsPluginData.FromString(plugins["_hparams_/session_start_info"])
    drawn = told.session_start_info.hparams
    assert drawn["train.wd"].number_value == 0.01
    assert drawn["stages.2.lr"].string_value == "[0.0001, 0.002]"


@pytest.fixture(scope="module")
def bucket():
    """Makes the URI of a place in a local bucket, with keys in it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    query = (
        f"?scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    )
    storage.make_dir(f"s3://KEY:SECRET@runs-bucket/start{query}")
    yield lambda path: f"s3://KEY:SECRET@runs-bucket/{path}{query}"
    server.stop()


def test_the_winner_is_laid_out_in_a_bucket(both, bucket):
    folder, plans = both
    recipe = runs.find("found", str(folder)).recipe
    paths = []
    for plan in plans:
        paths.append(bucket(f"stages/{plan.key}"))
        storage.upload_directory(folder / "stages" / plan.key, paths[-1])
    out = bucket("found")
    for _ in range(2):  # the second time as after a crash
        winner.lay_out(out, paths, recipe)
    for name in (*NAMES, "last"):
        checkpoint = reading.load(storage.join(out, "checkpoints", name))
        own = (folder / "one/checkpoints" / name / "model.safetensors").read_bytes()
        assert checkpoint.files["model.safetensors"] == own
    assert history.read_steps(out) == history.read_steps(str(folder / "one"))
    for file in storage.files(out, recursive=True):
        assert b"SECRET" not in storage.read_bytes(storage.join(out, file.path))


def test_the_best_score_counts_from_the_first_stage_on(tmp_path):
    for stage, scores in (("a", (0.7, 0.9)), ("b", (0.8, 0.95, 0.85))):
        record = history.History(str(tmp_path / stage))
        for epoch, score in enumerate(scores, 1):
            found = {"accuracy": 0.9, "f2": score, "f2_best": max(scores[:epoch])}
            row = history.EpochRow(1, 32, epoch, 0.01, 0.3, 0.2, found, 100.0, 1.0)
            record.add(row, [history.StepRow(1, epoch, epoch - 1, [0.01], 0.9, 0.3)], [])
        record.write(durable=True)
    rows = joined.joined([str(tmp_path / "a"), str(tmp_path / "b")])
    assert [row.scores["f2_best"] for row in rows.epochs] == [0.7, 0.9, 0.9, 0.95, 0.95]
    assert [step.step for step in rows.steps] == [0, 1, 2, 3, 4]


def test_a_chain_without_any_record_gives_no_rows(tmp_path):
    assert joined.joined([str(tmp_path / "nothing")]) == joined.Rows()
