"""Connects the planner of a search with Ray Tune.

Tune asks a `Searcher` for trials, a `Scheduler` whether a trial stops after a report, and a
`Stopper` whether all stop. Here these pass everything on to `search.planner.Planner`. Tune's own
state decides nothing, and is thrown away.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import ray.tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raytrain.distributed.trial import unpacked
from raytrain.errors import NoRoomError
from raytrain.search.failures import End, How
from raytrain.search.outcomes import Found
from raytrain.search.planner import Planner
from raytrain.search.table import State, Trial

logger = logging.getLogger(__name__)

# Seconds that a trial may wait for its CPU or GPU while no other one runs.
PATIENCE_S = 60.0
# Seconds until the user is told about that wait.
WAIT_TOLD_S = 10.0

# Makes what Ray Tune passes to a trial of the table.
Config = Callable[[Trial], dict[str, Any]]
# Called after every event of a trial, with the number of that trial.
Tell = Callable[[int], None]


class Unwritten:
    """An object of which Tune's files hold nothing.

    Tune pickles what it is given into files of its own, and a planner knows paths with keys.
    """

    def __getstate__(self) -> dict[str, Any]:
        """Returns nothing: nobody reads those files."""
        return {}


class Suggestions(Unwritten, Searcher):
    """Hands out the planner's trials, and hears how each ended."""

    def __init__(self, planner: Planner, config: Config, tell: Tell) -> None:
        """Starts without a trial.

        Args:
            planner: decides everything.
            config: of a trial.
            tell: called when a trial has ended.
        """
        super().__init__()
        self.planner = planner
        self.config = config
        self.tell = tell
        # Numbers in the table by Tune's own names.
        self.numbers: dict[str, int] = {}
        # What a trial said of its end, by number.
        self.ends: dict[int, End] = {}
        # The last error of a trial's process, by Tune's name.
        self.errors: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Returns what a new trial gets; None if none can go; FINISHED at the end."""
        trial = self.planner.next_trial()
        if trial is not None:
            self.numbers[trial_id] = trial.number
            return self.config(trial)
        if self.planner.is_ending or self.planner.is_over:
            return str(Searcher.FINISHED)
        return None

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Takes the end of a trial."""
        number = self.numbers.pop(trial_id, None)
        if number is None:
            return
        end = self.ends.pop(number, None)
        if end is None and error:
            end = End(How.DIED, self.errors.pop(trial_id, "its process died"))
        elif end is None and self.planner.is_ending:
            # It had not started, or was ended with the search.
            end = End(How.SIGNALLED)
        self.planner.ended(number, end or End(How.DONE))
        self.tell(number)

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the table of the search has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing, as `save`."""


class Verdicts(Unwritten, FIFOScheduler):
    """Passes reports of trials to the planner, which may stop them."""

    def __init__(self, suggestions: Suggestions) -> None:
        """Starts.

        Args:
            suggestions: knows the trials.
        """
        super().__init__()
        self.suggestions = suggestions

    def on_trial_result(self, controller: Any, trial: TuneTrial, result: Mapping[str, Any]) -> str:
        """Takes a report, and returns whether the trial goes on."""
        number = self.suggestions.numbers.get(trial.trial_id)
        # Tune repeats the last report when a trial has ended.
        if number is None or result.get("done") or number in self.suggestions.ends:
            return str(TrialScheduler.CONTINUE)
        planner = self.suggestions.planner
        end = _end_of(result)
        if end is not None:
            self.suggestions.ends[number] = end
            return str(TrialScheduler.CONTINUE)
        found = _found(result)
        stops = planner.stage_done(number, result["stage"], found, trained=result["trained"])
        self.suggestions.tell(number)
        if not stops:
            return str(TrialScheduler.CONTINUE)
        self.suggestions.ends[number] = End(How.DONE)
        if planner.parts.table.trials[number].state is State.STOPPED:
            return str(TrialScheduler.STOP)
        # It ends by itself.
        return str(TrialScheduler.CONTINUE)


def _end_of(report: Mapping[str, Any]) -> End | None:
    """The end that a trial reports; None where it reports a stage."""
    word = report.get("end")
    if word == "taken":
        return End(How.TAKEN, report["reason"])
    if word == "signalled":
        return End(How.SIGNALLED)
    if word == "failed":
        # Tune flattens nested mappings.
        fields = ("kind", "what", "why", "fix")
        error = unpacked({name: report[f"error/{name}"] for name in fields})
        return End(How.FAILED, error.what, error)
    return None


def _found(report: Mapping[str, Any]) -> Found:
    """The outcome of a stage that a trial reports."""
    return Found(
        score=report["score"],
        seconds=report["seconds"],
        reason=report.get("reason", ""),
        state=State(report.get("state", State.DIVERGED)),
    )


class Watch(Unwritten, ray.tune.Callback):
    """Looks at Tune's trials after each step of its loop."""

    def __init__(
        self,
        suggestions: Suggestions,
        lacking: Callable[[], str],
        ask_to_stop: Callable[[str], None],
    ) -> None:
        """Starts.

        Args:
            suggestions: knows the trials.
            lacking: what the cluster lacks for a trial, in words.
            ask_to_stop: called with a reason for which all running trials shall stop.
        """
        super().__init__()
        self.suggestions = suggestions
        self.lacking = lacking
        self.ask_to_stop = ask_to_stop
        # Whether the trials have been told of an error that ends the search.
        self.told = False
        # Whether all pending trials shall end.
        self.ends_all = False
        # When a trial was first seen waiting for resources while none ran.
        self.waiting_since: float | None = None
        # Whether the user has been told of this wait.
        self.wait_told = False

    def on_trial_error(
        self, iteration: int, trials: Sequence[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Notes why the process of a trial ended."""
        error = trial.get_error()
        text = "its process died"
        if error is not None:
            text = _first_line(error)
        self.suggestions.errors[trial.trial_id] = text

    def on_step_end(self, iteration: int, trials: Sequence[TuneTrial], **info: Any) -> None:
        """Takes back trials of whose end nobody has heard, and ends a search that only waits."""
        for trial in trials:
            if trial.trial_id in self.suggestions.numbers and trial.is_finished():
                self.suggestions.on_trial_complete(
                    trial.trial_id, error=trial.status == TuneTrial.ERROR
                )
        running = [trial for trial in trials if trial.status == TuneTrial.RUNNING]
        pending = [trial for trial in trials if trial.status == TuneTrial.PENDING]
        planner = self.suggestions.planner
        if planner.error is not None and not self.told:
            self.told = True
            self.ask_to_stop(type(planner.error).__name__)
        self.ends_all = planner.is_ending and not running
        if running or not pending or process_starts():
            self.waiting_since = None
            self.wait_told = False
        elif not planner.is_ending:
            self._wait()

    def _wait(self) -> None:
        """Says that no trial can start, and ends the search if that lasts too long."""
        if self.waiting_since is None:
            self.waiting_since = time.monotonic()
        waited = time.monotonic() - self.waiting_since
        if waited > PATIENCE_S:
            self.suggestions.planner.fail(
                NoRoomError(
                    f"no trial could start within {PATIENCE_S:.0f} seconds: {self.lacking()}",
                    "others use the cluster; all that was drawn and trained is kept",
                    "ray status shows who uses what",
                )
            )
        elif waited > WAIT_TOLD_S and not self.wait_told:
            self.wait_told = True
            logger.info(wait_in_words(self.lacking()))


def wait_in_words(lacking: str) -> str:
    """Returns what a user reads while no trial can start.

    Args:
        lacking: what the cluster lacks for a trial, in words.
    """
    return f"no trial can start yet: {lacking}; the search waits {PATIENCE_S:.0f} seconds at most"


def process_starts() -> bool:
    """Returns whether a process of this command has its resources and is starting.

    Tune asks for the process of a trial only when its CPU or GPU is reserved. On a busy machine the
    imports then take longer than one would wait for a CPU.
    """
    job = ray.get_runtime_context().get_job_id()
    job_id = ray.JobID(bytes.fromhex(job))
    # The public ray.util.state needs the dashboard, which a local session does without.
    starting = ray._private.state.actors(job_id=job_id, actor_state_name="PENDING_CREATION")
    return bool(starting)


class StopAll(Unwritten, ray.tune.Stopper):
    """Ends what is left when the search ends before its last trial."""

    # Of a copy that Tune makes.
    watch: Watch | None = None

    def __init__(self, watch: Watch) -> None:
        """Starts.

        Args:
            watch: says when.
        """
        self.watch = watch

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Never stops a single trial."""
        return False

    def stop_all(self) -> bool:
        """Returns whether all trials end."""
        return self.watch is not None and self.watch.ends_all


def _first_line(error: BaseException) -> str:
    """The line of an error that says most: Ray puts tracebacks before and after it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    cause = getattr(error, "cause", None)
    if cause is not None:
        return f"{type(cause).__name__}: {cause}".splitlines()[0]
    return lines[0]
