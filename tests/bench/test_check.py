"""`--check`: its parts on a CPU, as far as they can run there, and what is said of a GPU that is not there."""

import functools
import json
import multiprocessing
import subprocess
import time
from contextlib import contextmanager

import pytest
import torch
import torch.multiprocessing as mp
from handmade import NETWORK

from raytrain.bench import (
    check,
    check_common,
    check_feeds,
    check_group,
    check_numbers,
    check_runs,
    check_speed,
    generate,
    schedule,
    verdicts,
)
from raytrain.bench.__main__ import main
from raytrain.bench.check import Limited, run_part, run_parts
from raytrain.bench.verdicts import FAIL, PASS, SKIPPED, Setting, Verdict
from raytrain.errors import ResourceError
from raytrain.tiles import feeds
from raytrain.training import execution, lr_find
from raytrain.training.step import Stepper

SKIPS = "needs a GPU"


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    path = generate.write_tiles(str(tmp_path_factory.mktemp("check") / "dataset"), 40, 32).path
    return Setting(path, device="cpu", arch=NETWORK, size=32, batch=8, steps=3)


@pytest.fixture
def short_range_tests(monkeypatch):
    monkeypatch.setattr(lr_find, "range_test", functools.partial(lr_find.range_test, steps=26))


def outcomes(found):
    return {verdict.name: verdict.outcome for verdict in found}


def test_without_a_gpu_the_check_ends_with_a_sentence_at_once(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    began = time.monotonic()
    assert main(["--check"]) == 5
    said = capsys.readouterr()
    assert (
        "sees no GPU here" in said.err
        and "next: on a machine with a GPU" in said.err
        and said.out == ""
    )
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("failing", "code"), [(False, 0), (True, 1)])
def test_the_check_says_a_verdict_a_line_and_ends_with_json(
    failing, code, capsys, monkeypatch, tmp_path
):
    verdict = Verdict(
        "feeds", "cache", FAIL if failing else PASS, "0 of 200 batches differ", {"wrong": 0}
    )

    def run_parts(setting, end):
        assert len(setting.dataset) and setting.on_gpu
        check.logger.info(str(verdict))
        return [verdict]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a pretended GPU")
    monkeypatch.setattr(check, "run_parts", run_parts)
    monkeypatch.setattr(check, "TILES", 64)
    file = tmp_path / "check.json"
    assert main(["--check", "--json", str(file)]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{verdict.outcome:7} feeds: cache (0 of 200 batches differ)"
    assert json.loads(lines[-1]) == json.loads(file.read_text())
    found = json.loads(lines[-1])
    assert found["outcomes"] == {verdict.outcome: 1} and found["verdicts"][0]["values"] == {
        "wrong": 0
    }
    assert found["machine"]["gpu"] == "a pretended GPU"


def test_versions_and_numbers_run(setting, short_range_tests):
    found = outcomes(check_numbers.versions(setting))
    assert found == {"imports": PASS, "a graphed pass": SKIPPED}
    found = outcomes(check_numbers.numbers(setting))
    assert found.pop("replays in four stages") == SKIPPED
    assert len(found) == 7 and set(found.values()) == {PASS}


def test_numbers_find_a_gradient_that_is_wrong_and_weights_that_move(setting, monkeypatch):
    real, calls = Stepper.train_pass, []

    def wrong(self, plan, n, fetched):
        loss = real(self, plan, n, fetched)
        calls.append(n)
        if len(calls) == 5:
            self.weights[0].grad.mul_(1.5)
        return loss

    monkeypatch.setattr(Stepper, "train_pass", wrong)
    verdict = next(iter(check_numbers.numbers(setting)))
    assert verdict.outcome == FAIL and verdict.values["difference"] > 0.01
    monkeypatch.setattr(Stepper, "train_pass", real)
    monkeypatch.setattr(Stepper, "update", lambda self: (self.optimizer.step(), torch.zeros(()))[1])
    assert verdicts.tried("n", "i", lambda: check_numbers._infinite(setting)).outcome == FAIL


def test_a_range_test_over_a_frozen_graph_is_found(setting, short_range_tests, monkeypatch):
    real = Stepper.update

    def without(self):
        self.weights[0].grad = None
        return real(self)

    monkeypatch.setattr(Stepper, "update", without)
    verdict = verdicts.tried("n", "r", lambda: check_numbers._range_test(setting))
    assert verdict.outcome == FAIL and "1 weights without a gradient" in verdict.detail


def test_waits_and_feeds_run(setting):
    found = list(check_feeds.waits(setting))
    assert [verdict.outcome for verdict in found] == [SKIPPED, SKIPPED, PASS, PASS, PASS, PASS]
    assert found[-1].values == {"steps": setting.steps - 1}
    assert outcomes(check_feeds.feeds(setting)) == dict.fromkeys(
        ("device", "cache", "stream"), PASS
    )


def test_a_wait_is_a_failure(setting, monkeypatch):
    @contextmanager
    def refused(on_gpu):
        raise RuntimeError("called a synchronizing CUDA operation\nat ...")
        yield

    monkeypatch.setattr(check_feeds, "_waits_refused", refused)
    verdict = list(check_feeds.waits(setting))[2]
    assert (verdict.outcome, verdict.detail) == (
        FAIL,
        "RuntimeError: called a synchronizing CUDA operation",
    )


def test_a_picture_of_another_row_or_in_another_place_is_found(setting, monkeypatch):
    real = feeds.CacheFeed._gathered
    monkeypatch.setattr(
        feeds.CacheFeed, "_gathered", lambda self, rows: real(self, rows[::-1].copy())
    )
    assert outcomes(check_feeds.feeds(setting))["cache"] == FAIL
    monkeypatch.setattr(feeds.CacheFeed, "_gathered", lambda self, rows: real(self, rows).flip(2))
    assert outcomes(check_feeds.feeds(setting))["cache"] == FAIL


def test_the_advice_of_too_little_memory_is_followed(setting, monkeypatch):
    """On a GPU whose memory is a limit on the tiles of a pass."""
    assert {v.outcome for v in check_runs.memory(setting)} == {SKIPPED}
    monkeypatch.setattr(
        check_runs, "limited", lambda setting: pretended_limit(monkeypatch, most=[8])
    )
    found = list(check_runs.memory(setting))
    assert [v.outcome for v in found] == [PASS, PASS] and found[0].values == {
        "batch": 16,
        "accumulate": 2,
    }
    # Advice that does not hold: from the third step on, that is after the trial, less fits.
    monkeypatch.setattr(
        check_runs, "limited", lambda setting: pretended_limit(monkeypatch, most=[8, 8, 8, 4])
    )
    assert next(iter(check_runs.memory(setting))).outcome == FAIL


@contextmanager
def pretended_limit(monkeypatch, most):
    real = check_runs.networks.build
    calls = []

    def build(*arguments, **options):
        model = real(*arguments, **options)

        def full(module, inputs):
            calls.append(len(inputs[0]))
            if calls[-1] > most[min(len(calls), len(most)) - 1]:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        model.register_forward_pre_hook(full)
        return model

    with monkeypatch.context() as patch:
        patch.setattr(check_runs.networks, "build", build)
        yield


def test_a_run_stops_and_goes_on(setting):
    assert outcomes(check_runs.resume(setting)) == {
        "stopped within an epoch": PASS,
        "memory after each stage": SKIPPED,
    }


def test_without_the_package_of_checkpoints_what_needs_it_is_skipped(setting, monkeypatch):
    monkeypatch.setattr(schedule, "NEEDED", "raytrain_safetensors")
    verdict = next(iter(check_runs.resume(setting)))
    assert (verdict.outcome, verdict.detail) == (
        SKIPPED,
        "the package raytrain_safetensors is not installed",
    )


def test_processes_are_compared_with_one(setting, monkeypatch, tmp_path):
    def forked(member, arguments, nprocs):
        # One server imports torch and forks the members; on a GPU each is started anew.
        multiprocessing.set_forkserver_preload(["raytrain.bench.check_group"])
        mp.start_processes(member, arguments, nprocs=nprocs, start_method="forkserver")

    monkeypatch.setattr(check_group, "spawn", forked)
    monkeypatch.setattr(check_group, "WORLDS", (2,))
    found = list(check_group.processes(setting))
    assert outcomes(found) == {"2 processes, eager": PASS, "NCCL alone, then graphs": SKIPPED}
    (tmp_path / "losses-2-eager.json").write_text("[1.0, 1.1]")
    group = check_group.Ended(str(tmp_path), world=2, error=None)
    assert check_group._compared(group, "eager", [1.0, 1.0]).well is False
    group = check_group.Ended(str(tmp_path), world=3, error="it died")
    assert check_group._compared(group, "eager", [1.0])[:2] == (False, "it died")


def test_a_setting_is_measured_on_and_off_and_the_bench_gives_its_figures(
    setting, capfd, monkeypatch
):
    seen = []
    well, detail, values = check_speed.rates_in_turn(setting, "eager", seen.append, 1)
    assert (
        well
        and detail.startswith("on / off ")
        and len(values["on"]) == len(values["off"]) == check_speed.PAIRS
    )
    assert seen == [False] + [True, False] * (check_speed.PAIRS + 1)
    words = [
        "--tiles",
        "24",
        "--arch",
        "resnet18",
        "--stage",
        "32:8",
        "--only",
        "decode",
        "--pairs",
        "1",
    ]
    (verdict,) = check_speed.benched("speed", words)
    assert (verdict.name, verdict.outcome) == ("decode", PASS) and verdict.values["median"] > 0
    ended = subprocess.CompletedProcess([], 2)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: ended)
    (verdict,) = check_speed.benched("speed", [])
    assert verdict.outcome == FAIL and "exit code 2" in verdict.detail
    capfd.readouterr()


def test_a_part_is_a_process_with_a_limit_whose_verdicts_survive_it(setting, logged):
    found = run_part("versions", setting, 60)
    assert outcomes(found) == {"imports": PASS, "a graphed pass": SKIPPED}
    assert logged == [str(verdict) for verdict in found]
    (verdict,) = run_part("versions", setting, 0.2)
    assert (verdict.name, verdict.outcome) == (
        "the rest of it",
        SKIPPED,
    ) and "limit of 0 s" in verdict.detail
    verdict = check._failed("versions", -11, ["Segmentation fault"])
    assert (verdict.outcome, verdict.detail) == (FAIL, "exit code -11: Segmentation fault")


def test_parts_that_find_no_time_are_skipped_and_said(setting, monkeypatch, logged):
    ran = []
    monkeypatch.setattr(
        check, "run_part", lambda name, setting, limit: ran.append((name, round(limit))) or []
    )
    parts = {"a": Limited(print, 30), "b": Limited(print, 100), "c": Limited(print, 30)}
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run_parts(setting, 50, parts)
    assert ran == [("a", 30), ("b", 50), ("c", 30)]
    now[0] = 45
    found = run_parts(setting, 50, parts)
    assert [verdict.outcome for verdict in found] == [SKIPPED] * 3 and logged[0].startswith(
        "SKIPPED a: all of it (no time"
    )


def test_the_parts_before_the_bench_leave_it_two_minutes_and_a_half():
    before = [
        part.limit_s for name, part in check.PARTS.items() if name not in ("speed", "schedule")
    ]
    assert sum(before) + 150 <= check.WHOLE_S


def test_a_schedule_without_the_package_of_checkpoints_is_skipped(setting, monkeypatch):
    monkeypatch.setattr(schedule, "NEEDED", "raytrain_safetensors")
    (verdict,) = check_speed.schedule(setting)
    assert verdict.outcome == SKIPPED


def test_a_verdict_comes_through_its_line():
    verdict = Verdict("p", "n", PASS, 'said "é"', {"values": [1.5, 2]})
    assert Verdict.from_json(verdict.to_json()) == verdict and "\n" not in verdict.to_json()


def test_replays_of_graphs_are_counted(monkeypatch):
    class Graph:
        def replay(self):
            return None

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    with verdicts.replays_counted() as count:
        Graph().replay()
        Graph().replay()
    Graph().replay()
    assert count == [2]


def test_a_stage_that_would_silently_run_eagerly_is_an_error(setting):
    with pytest.raises(RuntimeError, match="CUDA graphs"):
        check_common.refuse_fallback("CUDA graphs are not possible here")
    check_common.refuse_fallback("stage 1")
    assert execution.has_graphs(torch.device("cuda")) and issubclass(ResourceError, Exception)
