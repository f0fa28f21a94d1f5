"""A search in a made-up world, on a clock on which a stage takes as long as it costs."""

import heapq
from dataclasses import dataclass

from raytrain.search.chains import Chain

FINALISTS = 3
# Chains that wait, for each slot, until the stage that they lack is trained by another one.
WAITING_PER_SLOT = 2


@dataclass
class Run:
    """A chain that has a slot.

    Attributes:
        chain: the chain.
        number: no two have the same.
        stages: how many of its stages are done.
    """

    chain: Chain
    number: int
    stages: int = 0

    def going_to_train(self, key):
        """Whether a stage is still before it."""
        return key in self.chain.keys[self.stages :]


@dataclass(frozen=True)
class Result:
    """What a search came to.

    Attributes:
        finalists: its best chains, the best one first.
        spent: cost of all stages that were trained.
        started: number of chains that got a slot, or found all their stages trained.
        finished: number of those that came to their end.
    """

    finalists: list
    spent: float
    started: int
    finished: int


def simulate(world, search, budget, slots):
    """Runs a search on a clock on which a stage takes as long as it costs.

    Args:
        world: gives the scores.
        search: has propose(taken, under_way, trained), stage_ended(chain, stages, score, fresh) and finalists(count).
        budget: no chain starts once this much is spent.
        slots: how many chains train at once.
    """
    scores, taken = {}, set()
    waiting, running, ends = [], [], []
    spent, finished, started = 0.0, 0, 0

    def next_chain():
        """The next chain that may start: no running one is going to train the stage that it lacks."""
        for chain in waiting:
            if startable(chain, scores, running):
                waiting.remove(chain)
                return chain
        while len(waiting) < WAITING_PER_SLOT * slots:
            under_way = [run.chain for run in running] + waiting
            chain = search.propose(taken, under_way, trained_or_soon(scores, running))
            if chain is None:
                return None
            taken.add(chain.keys[-1])
            if startable(chain, scores, running):
                return chain
            waiting.append(chain)
        return None

    def go_on(run, now):
        """Starts the next stage of a run that lacks one. Returns its cost, or None where the run ends."""
        chain = run.chain
        while run.stages < chain.length:
            key = chain.keys[run.stages]
            if key not in scores:
                cost = chain.costs[run.stages]
                heapq.heappush(ends, (now + cost, run.number, run))
                return cost
            run.stages += 1
            if search.stage_ended(chain, run.stages, scores[key], fresh=False):
                return None
        return None

    now = 0.0
    while True:
        while len(running) < slots and spent < budget:
            chain = next_chain()
            if chain is None:
                break
            started += 1
            run = Run(chain, started)
            cost = go_on(run, now)
            if cost is None:
                finished += run.stages == chain.length
                continue
            running.append(run)
            spent += cost
        if not ends:
            return Result(search.finalists(FINALISTS), spent, started, finished)
        now, _, run = heapq.heappop(ends)
        run.stages += 1
        chain = run.chain
        key = chain.keys[run.stages - 1]
        scores[key] = world.seen(chain, run.stages)
        stopped = search.stage_ended(chain, run.stages, scores[key], fresh=True)
        cost = None if stopped else go_on(run, now)
        if cost is not None:
            spent += cost
            continue
        running.remove(run)
        finished += run.stages == chain.length


def startable(chain, scores, running):
    """Whether no running chain is going to train the first stage that a chain lacks."""
    for key in chain.keys:
        if key not in scores:
            return not any(run.going_to_train(key) for run in running)
    return True


def trained_or_soon(scores, running):
    """Keys of stages that cost nothing: they are trained, or a running chain is going to train them."""
    keys = set(scores)
    for run in running:
        keys.update(run.chain.keys)
    return keys
