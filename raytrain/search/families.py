"""Which lists of stages begin alike, as the keys of their chains tell. No torch, no ray."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raytrain.search.chains import Chain


class Families:
    """Lists whose first stages are the same training.

    Two chains of different lists that have the same key at stage n say so: their lists begin with
    the same n stages, whatever the values of the fields.
    """

    def __init__(self, schedules: Sequence[str]) -> None:
        """Starts with lists that share nothing.

        Args:
            schedules: names of all lists.
        """
        self._number = {name: number for number, name in enumerate(schedules)}
        # For each number of stages, the family of each list: the number of its first list.
        self._families: dict[int, list[int]] = {}
        self._owners: dict[str, str] = {}

    @classmethod
    def of(cls, schedules: Sequence[str], chains: Iterable[Chain]) -> Families:
        """Returns what some chains tell about all lists."""
        found = cls(schedules)
        for chain in chains:
            found.meet(chain)
        return found

    def meet(self, chain: Chain) -> None:
        """Takes note of the keys of a chain."""
        for stages, key in enumerate(chain.keys, start=1):
            owner = self._owners.setdefault(key, chain.schedule)
            if owner != chain.schedule:
                self._join(owner, chain.schedule, stages)

    def same_as(self, other: Families) -> bool:
        """Whether others say the same of each list."""
        return self._families == other._families

    def family(self, schedule: str, stages: int) -> int:
        """Returns a number that lists share if their first stages are the same.

        Args:
            schedule: name of a list.
            stages: how many of its stages.
        """
        number = self._number[schedule]
        if stages not in self._families:
            return number
        return self._families[stages][number]

    def members(self, schedule: str, stages: int) -> list[int]:
        """Returns the numbers of the lists that begin with the first stages of this one."""
        family = self.family(schedule, stages)
        if stages not in self._families:
            return [family]
        found = []
        for number, other in enumerate(self._families[stages]):
            if other == family:
                found.append(number)
        return found

    def _join(self, first: str, second: str, stages: int) -> None:
        families = self._families.setdefault(stages, list(range(len(self._number))))
        one = families[self._number[first]]
        other = families[self._number[second]]
        kept = min(one, other)
        for number, family in enumerate(families):
            if family in (one, other):
                families[number] = kept
