"""What the model is measured against: Optuna's TPE, and random draws, both with halving at the ends of stages.

A chain stops at the end of a stage if its score lies below the median of the chains that came so far.
"""

import warnings

import numpy as np

LEAST_OTHERS = 4
# How far below the median a score may lie.
MARGIN = 0.0007
FIRST_DRAWS = 8
MOST_REPEATS = 400


class Halving:
    """Stops a chain that is in the lower half at the end of a stage."""

    def __init__(self):
        # For each number of stages, the scores by key.
        self.rungs = {}

    def stops(self, chain, stages, score):
        """Takes the score of a stage, and says whether the chain ends there."""
        if stages == chain.length:
            return False
        key = chain.keys[stages - 1]
        rung = self.rungs.setdefault(stages, {})
        others = [value for other, value in rung.items() if other != key]
        rung[key] = score
        return len(others) >= LEAST_OTHERS and score < np.median(others) - MARGIN


class Finished:
    """The scores of finished chains."""

    def __init__(self):
        self.scores = []

    def add(self, chain, score):
        self.scores.append((score, chain))

    def best(self, count):
        """Those with the highest scores."""
        ranked = sorted(self.scores, key=lambda pair: -pair[0])
        return [chain for _, chain in ranked[:count]]


class RandomHalving:
    """Random draws, with halving."""

    def __init__(self, source, seed, slots):
        self._source = source
        self._rng = np.random.default_rng(seed)
        self._halving = Halving()
        self._finished = Finished()

    def propose(self, taken, under_way, trained):
        for _ in range(MOST_REPEATS):
            chain = self._source.draw(self._rng)
            if chain.keys[-1] not in taken:
                return chain
        return None

    def stage_ended(self, chain, stages, score, fresh):
        stops = self._halving.stops(chain, stages, score)
        if stages == chain.length:
            self._finished.add(chain, score)
        return stops

    def finalists(self, count):
        return self._finished.best(count)


class TpeHalving:
    """Optuna's TPE by ask and tell, with halving. It hears every stage of its trials, and repeats cost nothing.

    Several slots: constant_liar, so that trials under way count.
    """

    def __init__(self, made_up, seed, slots):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore")
        self._optuna = optuna
        self._made_up = made_up
        sampler = optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            group=True,
            n_startup_trials=FIRST_DRAWS,
            constant_liar=slots > 1,
        )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._trials = {}
        # By the key of a chain's last stage: what was reported of its stages, and its score; None if it was stopped.
        self._reports = {}
        self._ends = {}
        self._halving = Halving()
        self._finished = Finished()

    def propose(self, taken, under_way, trained):
        for _ in range(MOST_REPEATS):
            trial = self._study.ask()
            chain = self._chain(trial)
            last = chain.keys[-1]
            if last not in taken:
                self._trials[last] = trial
                return chain
            self._repeat(trial, last)
        return None

    def stage_ended(self, chain, stages, score, fresh):
        last = chain.keys[-1]
        trial = self._trials[last]
        if stages == chain.length:
            self._end(trial, last, score)
            self._finished.add(chain, score)
            return False
        trial.report(score, stages)
        self._reports.setdefault(last, {})[stages] = score
        if self._halving.stops(chain, stages, score):
            self._end(trial, last, None)
            return True
        return False

    def finalists(self, count):
        return self._finished.best(count)

    def _chain(self, trial):
        lists = self._made_up.LISTS
        schedule = trial.suggest_categorical("list", list(lists))
        decay = trial.suggest_int("decay", 0, self._made_up.DECAYS - 1)
        rates = []
        for stage in range(len(lists[schedule])):
            rates.append(trial.suggest_int(f"{schedule}.{stage}", 0, self._made_up.RATES - 1))
        return self._made_up.chain_of(schedule, decay, rates)

    def _end(self, trial, last, score):
        """Tells the end of a trial; a stopped one has no score."""
        self._ends[last] = score
        state = self._optuna.trial.TrialState.COMPLETE
        if score is None:
            state = self._optuna.trial.TrialState.PRUNED
        self._study.tell(trial, score, state=state)

    def _repeat(self, trial, last):
        """Tells again how a chain ended that was proposed before; one under way fails."""
        if last not in self._ends:
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
            return
        for stages, score in self._reports.get(last, {}).items():
            trial.report(score, stages)
        self._end(trial, last, self._ends[last])
