"""Read from the record of a session: where a run was hurt, where it went on, and what took how long in between."""

from itertools import pairwise

# From a kill to the end of the first step after it: `process` until the training function begins in a new one, imports
# included; `network` with what building the first one imports, and the checkpoint.
PARTS = ("noticed", "process", "network", "tiles", "step")


class Recovery:
    """How a run came back after the time of a kill.

    `lost_s`: seconds of training that were done again, from the first step that was to the kill. `seconds`: from the kill to
    the end of the first step after it; `parts` of it by name, where the driver lived on. None and empty where no new process
    has trained: a run goes on for a while without its raylet or GCS, and may come to its end in that time.
    """

    def __init__(self, entries, at):
        self.entries, self.at, self.lost_s, self.seconds, self.parts = entries, at, None, None, {}
        if len(found := batches(entries, 0, at)) > 1:
            self._measure(*found[:2])

    def _measure(self, first, second):
        again = [
            e
            for e in self.entries
            if e["t"] < self.at and is_batch(e, 0) and path(e) == path(first)
        ]
        self.lost_s = self.at - again[-1]["t"] if again else 0.0
        self.seconds = second["t"] - self.at
        self.parts = self._parts(first, second)

    def _parts(self, first, second):
        began = next(e for e in self.entries if e["what"] == "worker" and e["pid"] == first["pid"])
        ends = [
            self.at,
            self._said("the workers start again"),
            began["t"],
            self._said("resuming", "new run"),
            first["t"],
            second["t"],
        ]
        return {name: b - a for name, (a, b) in zip(PARTS, pairwise(ends), strict=True)}

    def _said(self, *words):
        lines = (e for e in self.entries if e["what"] == "line" and e["t"] > self.at)
        return next((e["t"] for e in lines if any(word in e["line"] for word in words)), self.at)


def batches(entries, rank, after=0.0):
    """The batches of a rank in its first process that came to training after a time."""
    fresh = {e["pid"] for e in entries if e["what"] == "worker" and e["t"] > after}
    found = [e for e in entries if is_batch(e, rank) and e["pid"] in fresh]
    return [e for e in found if e["pid"] == found[0]["pid"]]


def is_batch(entry, rank):
    return entry["what"] == "batch" and entry["rank"] == rank


def path(batch):
    """Sorts batches as a run meets them."""
    return batch["stage"], batch["epoch"], batch["part"] == "valid", batch["number"]


def driver(entries):
    """The process that spoke last for the run."""
    return [e["pid"] for e in entries if e["what"] == "line"][-1]
