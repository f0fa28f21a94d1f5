"""Where the time of a training step goes, by torch's profiler. No Ray."""

from __future__ import annotations

from torch.profiler import ProfilerActivity, profile

from raytrain.bench.figures import Figure
from raytrain.bench.sides import Loop

# Percent; operations below it are left out.
LEAST_SHARE = 1.0
# Name of the time in which the thread was in no operation of torch, such as in Python code.
OUTSIDE = "outside torch"


def profiled(loop: Loop, rounds: int, steps: int) -> list[Figure]:
    """Measures the share of each operation in the time of the whole training loop.

    Args:
        loop: in one stage, on a CPU; `raytrain.bench.gpu` profiles GPUs.
        rounds: number of blocks, each of which gives a value.
        steps: optimiser steps of a block.

    Returns:
        Percent of the time by operation, largest median first.
    """
    # The first steps allocate memory, which would appear in the profile.
    loop.block(steps)
    blocks = [_shares(loop, steps) for _ in range(rounds)]
    figures = []
    for name in _largest(blocks):
        values = _values(blocks, name)
        figures.append(Figure(f"{loop.name}.profile.{name}", name, "%", values, loop.about))
    return figures


def _largest(blocks: list[dict[str, float]]) -> list[str]:
    """The operations whose median share is large enough, largest first."""
    medians = {}
    # Only those of the first block: a large operation occurs in every block.
    for name in blocks[0]:
        ordered = sorted(_values(blocks, name))
        median = ordered[len(blocks) // 2]
        if median >= LEAST_SHARE:
            medians[name] = median
    return sorted(medians, key=lambda name: -medians[name])


def _values(blocks: list[dict[str, float]], name: str) -> tuple[float, ...]:
    """The share of one operation in each block; 0 where it did not occur."""
    return tuple(shares.get(name, 0.0) for shares in blocks)


def _shares(loop: Loop, steps: int) -> dict[str, float]:
    """Trains a block. Returns percent of its time by operation, without the operations inside."""
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        loop.block(steps)
    # Times of the profiler are in microseconds.
    events = watched.events() or ()
    start = min(event.time_range.start for event in events)
    end = max(event.time_range.end for event in events)
    shares = {}
    for event in watched.key_averages():
        shares[event.key] = 100 * event.self_cpu_time_total / (end - start)
    # Operations of several threads can overlap, so that the sum exceeds 100 percent.
    shares[OUTSIDE] = max(0.0, 100 - sum(shares.values()))
    return shares
