"""What Ray Tune is given: files of its own in a temporary folder, and no keys of the environment."""

import errno
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune.execution import class_cache

from raytrain.distributed import tune as module
from raytrain.errors import StorageError
from raytrain.evaluation.tasks.multi_label import SCORE
from raytrain.worker import Worker


@pytest.fixture
def tuner(monkeypatch):
    """Tune without Ray: what it was given, and the settings that Ray would show of a trial; fails where it is told to."""
    told = SimpleNamespace(fails=False, error=KeyboardInterrupt())

    class Tuner:
        def __init__(self, trainable, tune_config, run_config, param_space=None):
            told.folder = Path(run_config.storage_path)
            told.trial = (
                class_cache._ActorClassCache()
                .get(type("Trial", (), {}))
                ._default_options["runtime_env"]
            )

        def fit(self):
            (told.folder / "ray").mkdir(parents=True, exist_ok=True)
            (told.folder / "ray" / "tuner.pkl").write_text("what Tune pickles")
            if told.fails:
                raise told.error
            return [SimpleNamespace(error=None, metrics={"trial_id": "a"})]

    monkeypatch.setattr(module.ray.tune, "Tuner", Tuner)
    monkeypatch.setattr(
        module.ray.tune,
        "with_parameters",
        lambda function, **given: lambda config: function(config, **given),
    )
    monkeypatch.setattr(module, "session", nullcontext)
    monkeypatch.setattr(module, "check_workers", lambda number: None)
    monkeypatch.setattr(module, "check_machines", lambda places: [])
    monkeypatch.setattr(module, "cpus", lambda: 2)
    monkeypatch.setattr(module.storage, "probe", lambda path: None)
    return told


def nothing(config, worker, given):
    """Stands for a trial."""


def trials_in(path):
    return module.Trials(nothing, None, {}, path, 1, SCORE)


def attempt():
    return module.Attempt(nothing, None, Worker(), {"CPU": 1}, None, None, [], None)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("what", ["trials", "attempt"])
def test_tune_keeps_its_files_in_a_folder_that_is_removed(tuner, fails, what):
    tuner.fails = fails
    with pytest.raises(KeyboardInterrupt) if fails else nullcontext():
        if what == "trials":
            module.run_trials(trials_in("s3://KEY:S3CRET@bucket/runs/s?region=us-east-1"))
        else:
            module.run_attempt(attempt())
    assert "S3CRET" not in str(tuner.folder) and str(tuner.folder).startswith(tempfile.gettempdir())
    assert not tuner.folder.exists()


@pytest.mark.parametrize("what", ["trials", "attempt"])
def test_a_full_temporary_folder_is_an_error_of_the_storage(tuner, tmp_path, what):
    tuner.fails, tuner.error = True, OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StorageError, match=r"cannot write .*: No space left") as caught:
        if what == "trials":
            module.run_trials(trials_in(str(tmp_path)))
        else:
            module.run_attempt(attempt())
    assert "TMPDIR" in caught.value.fix and not tuner.folder.exists()


def test_another_error_of_the_system_is_not_taken_for_a_full_disk(tuner):
    tuner.fails, tuner.error = True, OSError(errno.EBADF, "Bad file descriptor")
    with pytest.raises(OSError, match="Bad file descriptor"):
        module.run_attempt(attempt())


def test_keys_of_the_environment_are_no_settings_of_trials(tuner, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "S3CRET")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "S3CRET")
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
    module.run_trials(trials_in(str(tmp_path)))
    assert tuner.trial["env_vars"]["RAY_CHDIR_TO_TRIAL_DIR"] == "0" and "S3CRET" not in str(
        tuner.trial
    )
