"""What an advisor keeps of the outcomes that it heard. No torch, no ray."""

from __future__ import annotations

from collections.abc import Collection

from raytrain.search.chains import Chain


class Record:
    """Scores of the ends of chains, and the stages that diverged."""

    def __init__(self) -> None:
        """Starts with nothing."""
        # By the key of the last stage, in the order in which they were heard.
        self.ends: dict[str, float] = {}
        self._chains: dict[str, Chain] = {}
        self._diverged: set[str] = set()
        self._trained: set[str] = set()

    @property
    def finished(self) -> list[Chain]:
        """Chains that were heard to the end and did not diverge."""
        return list(self._chains.values())

    def hear(self, chain: Chain, stages: int, score: float | None) -> None:
        """Takes the outcome of a stage, see `Advisor.hear`."""
        key = chain.keys[stages - 1]
        if score is None:
            self._diverged.add(key)
            return
        self._trained.add(key)
        if stages == chain.length and key not in self.ends:
            self.ends[key] = score
            self._chains[key] = chain

    def begun(self, chain: Chain) -> bool:
        """Whether the first stage of a chain has a score."""
        return chain.keys[0] in self._trained

    def closed(self, chain: Chain, taken: Collection[str]) -> bool:
        """Whether a chain cannot be proposed: it was, it is finished, or a stage of it diverged."""
        last = chain.keys[-1]
        if last in taken or last in self.ends:
            return True
        return not self._diverged.isdisjoint(chain.keys)
