"""Where the time of a training step goes, by torch's profiler. No ray."""

from __future__ import annotations

from torch.profiler import ProfilerActivity, profile

from raytrain.bench.figures import Figure
from raytrain.bench.sides import Loop

LEAST_SHARE = 1.0


def profiled(loop: Loop, rounds: int, steps: int) -> list[Figure]:
    """Share of each operation in the time of the whole loop's steps, percent; those of one percent and more.

    Args:
        loop: in one stage, on a CPU: a GPU's own profile stands in `gpu`.
        rounds: blocks, each of which gives a value.
        steps: of a block.
    """
    loop.block(steps)
    found = [_shares(loop, steps) for _ in range(rounds)]
    medians = {
        name: sorted(shares.get(name, 0.0) for shares in found)[rounds // 2] for name in found[0]
    }
    largest = sorted(
        (name for name, share in medians.items() if share >= LEAST_SHARE), key=lambda n: -medians[n]
    )
    return [
        Figure(
            f"{loop.name}.profile.{name}",
            name,
            "%",
            tuple(shares.get(name, 0.0) for shares in found),
            loop.about,
        )
        for name in largest
    ]


def _shares(loop: Loop, steps: int) -> dict[str, float]:
    """Percent of the block's time by operation, without the operations that each one calls; the rest is `outside`."""
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        loop.block(steps)
    events = watched.events() or ()
    whole = max(event.time_range.end for event in events) - min(
        event.time_range.start for event in events
    )
    shares = {
        event.key: 100 * event.self_cpu_time_total / whole for event in watched.key_averages()
    }
    return shares | {"outside torch": max(0.0, 100 - sum(shares.values()))}
