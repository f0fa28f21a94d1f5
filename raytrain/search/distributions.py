"""How a search draws the value of a field. No torch, no ray.

    choice      one of a list; of numbers, near ones are alike
    uniform     [a, b], a number between both
    loguniform  [a, b], the same with equal weight for equal ratios
    randint     [a, b], a whole number from a to b - 1
    grid        [a, b, n], one of n numbers at equal distances, a and b among them
    loggrid     [a, b, n], the same with equal ratios

With `ratio: r`, the drawn number x stands for the pair of learning rates [r * x, x].

A value is told by its coordinate. For numbers it is the quantile, from 0 to 1: of n values in
ascending order, the first has 0 and the last has 1. For other choices it is the number of the
choice, from 0.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from raytrain.errors import ConfigError, did_you_mean
from raytrain.search import paths

NAMES = ("choice", "uniform", "loguniform", "randint", "grid", "loggrid")
RATIO = "ratio"
# Drawn numbers are rounded to so many digits. They are short in tables, and the last bits of a
# logarithm, which differ between machines, do not change them.
DIGITS = 6
# More values than this are a range.
MOST_VALUES = 1000
# Steps of `near`: levels of a field that has them, standard deviation of a quantile otherwise.
LEVELS = (-2, -1, 1, 2)
QUANTILE_STEP = 0.15
# YAML reads 1e-3, without a dot, as text.
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


class Distribution(Protocol):
    """How the value of one field is drawn."""

    @property
    def ordered(self) -> bool:
        """Whether near coordinates mean near values."""

    @property
    def levels(self) -> int | None:
        """Number of different values; None if there is no end of them."""

    @property
    def middle(self) -> float:
        """The coordinate of the median; of values without an order, that of the first one."""

    def value(self, coordinate: float) -> Any:
        """Returns the value at a coordinate, as JSON holds it."""

    def coordinate(self, value: Any) -> float | None:
        """Returns the coordinate of a value, or None if it is never drawn."""

    def draw(self, rng: np.random.Generator) -> float:
        """Draws a coordinate."""

    def near(self, coordinate: float, rng: np.random.Generator) -> float:
        """Draws a coordinate near another one: not the same, unless there is only one."""

    def to_check(self) -> tuple[Any, ...]:
        """Returns every choice, or both ends of a range."""


@dataclass(frozen=True)
class Levels:
    """Numbers with equal weight.

    Attributes:
        values: different ones in ascending order.
    """

    values: Sequence[float]
    ordered = True

    @property
    def levels(self) -> int:
        """How many there are."""
        return len(self.values)

    @property
    def middle(self) -> float:
        """The coordinate of the median."""
        return self._coordinate_at(len(self.values) // 2)

    def value(self, coordinate: float) -> float:
        """Returns the number at a coordinate."""
        return self.values[self._index_at(coordinate)]

    def coordinate(self, value: Any) -> float | None:
        """Returns the coordinate of a number, or None if it is not one of them."""
        # Python takes true for the number 1.
        if not _is_number(value) or value not in self.values:
            return None
        return self._coordinate_at(self.values.index(value))

    def draw(self, rng: np.random.Generator) -> float:
        """Draws the coordinate of one of them."""
        return self._coordinate_at(int(rng.integers(len(self.values))))

    def near(self, coordinate: float, rng: np.random.Generator) -> float:
        """Goes one or two numbers up or down."""
        index = self._index_at(coordinate)
        reached = []
        for step in LEVELS:
            # At an end, only steps inwards are left.
            if 0 <= index + step < len(self.values):
                reached.append(index + step)
        if not reached:
            return coordinate
        return self._coordinate_at(int(rng.choice(reached)))

    def to_check(self) -> tuple[float, ...]:
        """Returns all of them; of a range of whole numbers, its ends."""
        if isinstance(self.values, range):
            # It may be as long as all seeds. Between its ends, a field allows all or nothing.
            return self.values[0], self.values[-1]
        return tuple(self.values)

    def _index_at(self, coordinate: float) -> int:
        return round(coordinate * (len(self.values) - 1))

    def _coordinate_at(self, index: int) -> float:
        if len(self.values) == 1:
            # There is no distance between the first and the last one.
            return 0.0
        return index / (len(self.values) - 1)


@dataclass(frozen=True)
class Options:
    """Choices that are equal or different, and nothing in between.

    Attributes:
        values: different ones, as JSON holds them.
    """

    values: tuple[Any, ...]
    ordered = False
    middle = 0.0

    @property
    def levels(self) -> int:
        """How many there are."""
        return len(self.values)

    def value(self, coordinate: float) -> Any:
        """Returns the choice of a number, from 0."""
        return self.values[int(coordinate)]

    def coordinate(self, value: Any) -> float | None:
        """Returns the number of a choice, or None if it is not one of them."""
        # As text, because Python takes true for 1.
        wanted = as_text(value)
        for number, known in enumerate(self.values):
            if as_text(known) == wanted:
                return float(number)
        return None

    def draw(self, rng: np.random.Generator) -> float:
        """Draws the number of a choice."""
        return float(rng.integers(len(self.values)))

    def near(self, coordinate: float, rng: np.random.Generator) -> float:
        """Draws another choice."""
        others = [number for number in range(len(self.values)) if number != int(coordinate)]
        if not others:
            return coordinate
        return float(rng.choice(others))

    def to_check(self) -> tuple[Any, ...]:
        """Returns all of them."""
        return self.values


@dataclass(frozen=True)
class Interval:
    """Numbers between two ends.

    Attributes:
        low: lower end.
        high: upper end.
        log: whether equal ratios have equal weight, and not equal differences.
    """

    low: float
    high: float
    log: bool = False
    ordered = True
    levels = None
    middle = 0.5

    def value(self, coordinate: float) -> float:
        """Returns the number at a quantile: an end as it is, others with `DIGITS` digits."""
        if coordinate <= 0:
            return float(self.low)
        if coordinate >= 1:
            return float(self.high)
        if self.log:
            low = math.log(self.low)
            exact = math.exp(low + coordinate * (math.log(self.high) - low))
        else:
            exact = self.low + coordinate * (self.high - self.low)
        # Rounding may lead out of the interval.
        return min(max(rounded(exact), float(self.low)), float(self.high))

    def coordinate(self, value: Any) -> float | None:
        """Returns the quantile of a number, or None if it lies outside."""
        if not _is_number(value) or not self.low <= value <= self.high:
            return None
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return float(value - self.low) / (self.high - self.low)

    def draw(self, rng: np.random.Generator) -> float:
        """Draws a quantile."""
        return float(rng.random())

    def near(self, coordinate: float, rng: np.random.Generator) -> float:
        """Moves by a normal step; one beyond an end comes back by as much."""
        step = float(rng.normal(0, QUANTILE_STEP))
        moved = abs(coordinate + step)
        if moved > 1:
            moved = 2 - moved
        # A step of more than the whole width, at 7 standard deviations.
        return max(moved, 0.0)

    def to_check(self) -> tuple[float, float]:
        """Returns both ends."""
        return self.low, self.high


@dataclass(frozen=True)
class RatePair:
    """Pairs of learning rates with a fixed ratio.

    Attributes:
        ratio: first rate of the pair, divided by the second one.
        second: how the second rate is drawn.
    """

    ratio: float
    second: Levels | Interval
    ordered = True

    @property
    def levels(self) -> int | None:
        """Number of different pairs; None if there is no end of them."""
        return self.second.levels

    @property
    def middle(self) -> float:
        """The coordinate of the median."""
        return self.second.middle

    def value(self, coordinate: float) -> list[float]:
        """Returns the pair at a coordinate."""
        return self._pair(self.second.value(coordinate))

    def coordinate(self, value: Any) -> float | None:
        """Returns the coordinate of a pair, or None if it is never drawn."""
        if not isinstance(value, list | tuple) or len(value) != 2:
            return None
        first, second = value
        coordinate = self.second.coordinate(second)
        if coordinate is None or not _is_number(first):
            return None
        # A recipe may hold more digits than a drawn pair.
        if rounded(first) != self._pair(second)[0]:
            return None
        return coordinate

    def draw(self, rng: np.random.Generator) -> float:
        """Draws a coordinate."""
        return self.second.draw(rng)

    def near(self, coordinate: float, rng: np.random.Generator) -> float:
        """Moves the second rate."""
        return self.second.near(coordinate, rng)

    def to_check(self) -> tuple[list[float], ...]:
        """Returns every pair, or both ends of a range."""
        return tuple(self._pair(second) for second in self.second.to_check())

    def _pair(self, second: float) -> list[float]:
        return [rounded(self.ratio * second), second]


def rounded(number: float) -> float:
    """Returns a number with `DIGITS` digits."""
    return float(f"{number:.{DIGITS}g}")


def as_text(value: Any) -> str:
    """Returns JSON text that is equal for equal values, and tells true from 1."""
    return json.dumps(value, sort_keys=True, default=str)


def is_distribution(how: Any) -> bool:
    """Whether a value of a space file is meant as a distribution."""
    return isinstance(how, Mapping) and any(name in how for name in NAMES)


def read(path: str, how: Any) -> Distribution:
    """Reads a distribution of a space file.

    Args:
        path: of the field, for messages.
        how: a mapping of one name to its list, and the ratio of a pair, if any.

    Raises:
        ConfigError: it is no distribution, or one that draws nothing.
    """
    name, arguments, ratio = _parts(path, how)
    made: Levels | Interval | Options
    if name == "choice":
        made = _choice(path, arguments)
    elif name in ("grid", "loggrid"):
        made = _grid(path, name, arguments)
    else:
        made = _range(path, name, arguments)
    if ratio is None:
        return made
    return _pair(path, ratio, made)


def _parts(path: str, how: Any) -> tuple[str, list[Any], Any]:
    """The name of a distribution, its list, and the ratio or None."""
    example = f"{path}: {{choice: [VALUE, VALUE]}}, or {{loguniform: [0.001, 0.1]}} for a range"
    known = f"the distributions are {', '.join(NAMES)}, each with a list"
    if not isinstance(how, Mapping):
        raise ConfigError(
            f"the space gives {path} the value {how!r}, and no distribution",
            f"a space says what is drawn; {known}",
            f"{example}; a value that is not searched belongs into the recipe",
        )
    names = [key for key in how if key != RATIO]
    if len(names) != 1:
        raise ConfigError(
            f"the space draws {path} by {_listed(names)}", f"it takes one; {known}", example
        )
    name = names[0]
    if name not in NAMES:
        nearest = did_you_mean(str(name), NAMES)
        raise ConfigError(f'the space draws {path} by "{name}".{nearest}', known, example)
    arguments = how[name]
    if not isinstance(arguments, list):
        raise ConfigError(
            f"the space draws {path} by {name} {arguments!r}, which is not a list", known, example
        )
    return name, [plain(argument) for argument in arguments], plain(how.get(RATIO))


def _listed(names: Sequence[Any]) -> str:
    """Names for a message."""
    if not names:
        return "nothing"
    return " and ".join(str(name) for name in names)


def _choice(path: str, values: Sequence[Any]) -> Levels | Options:
    if not values:
        raise ConfigError(
            f"the space draws {path} from an empty choice",
            "there is nothing to draw",
            f"{path}: {{choice: [VALUE, VALUE]}}",
        )
    seen: list[Any] = []
    for value in values:
        if _is_among(value, seen):
            raise ConfigError(
                f"the space offers {path} = {value} twice",
                "choices have equal weight, and equal ones are one",
                "leave one of them out",
            )
        seen.append(value)
    if all(_is_number(value) for value in values):
        return Levels(tuple(sorted(values)))
    return Options(tuple(values))


def _is_among(value: Any, seen: Sequence[Any]) -> bool:
    """Whether a value is equal to one of others."""
    for other in seen:
        if as_text(other) == as_text(value):
            return True
        # 1 and 1.0 are the same number, but not the same text.
        if _is_number(value) and _is_number(other) and value == other:
            return True
    return False


def _range(path: str, name: str, arguments: Sequence[Any]) -> Levels | Interval:
    """A uniform, a loguniform or a randint."""
    low, high = _numbers(path, name, arguments, 2)
    if name == "randint":
        return _whole_numbers(path, low, high)
    _check_ends(path, name, low, high)
    return Interval(low, high, log=name == "loguniform")


def _whole_numbers(path: str, low: float, high: float) -> Levels:
    written = f"randint [{low:g}, {high:g}]"
    if low != int(low) or high != int(high):
        raise ConfigError(
            f"the space draws {path} by {written}",
            "randint draws whole numbers and takes whole ends",
            f"{path}: {{uniform: [{low:g}, {high:g}]}} draws fractions",
        )
    if low >= high:
        raise ConfigError(
            f"the space draws {path} by {written}, which draws nothing",
            "the upper end of randint is exclusive: [2, 4] draws 2 and 3",
            f"{path}: {{randint: [{int(low)}, {int(low) + 2}]}}",
        )
    return Levels(range(int(low), int(high)))


def _grid(path: str, name: str, arguments: Sequence[Any]) -> Levels:
    """A grid or a loggrid."""
    low, high, count = _numbers(path, name, arguments, 3)
    _check_ends(path, name, low, high)
    if count != int(count) or not 2 <= count <= MOST_VALUES:
        raise ConfigError(
            f"the space draws {path} from a {name} of {count:g} values",
            f"a grid has both its ends and at most {MOST_VALUES:,} values",
            f"{path}: {{{name}: [{low:g}, {high:g}, 5]}}",
        )
    whole = Interval(low, high, log=name == "loggrid")
    places = np.linspace(0, 1, int(count)).tolist()
    values = [whole.value(place) for place in places]
    if len(set(values)) < len(values):
        raise ConfigError(
            f"the space draws {path} from a {name} of {count:g} values, and some are equal",
            f"values are rounded to {DIGITS} digits",
            f"{path}: {{{name}: [{low:g}, {high:g}, N]}} with a smaller N",
        )
    ends_are_whole = isinstance(low, int) and isinstance(high, int)
    if ends_are_whole and all(value.is_integer() for value in values):
        # A field that takes whole numbers may refuse 2.0.
        return Levels(tuple(int(value) for value in values))
    return Levels(tuple(values))


def _numbers(path: str, name: str, arguments: Sequence[Any], count: int) -> Sequence[float]:
    """The arguments of a distribution that takes so many numbers."""
    takes = {2: f"{name}: [a, b]", 3: f"{name}: [a, b, n], with n values from a to b"}
    finite = []
    for value in arguments:
        if _is_number(value) and math.isfinite(value):
            finite.append(value)
    if len(finite) == len(arguments) == count:
        return finite
    written = ", ".join(str(value) for value in arguments)
    raise ConfigError(
        f"the space draws {path} by {name} [{written}]",
        f"{name} takes {count} finite numbers",
        f"{path}: {{{takes[count]}}}",
    )


def _check_ends(path: str, name: str, low: float, high: float) -> None:
    if low >= high:
        raise ConfigError(
            f"the space draws {path} by {name} from {low:g} to {high:g}",
            "the lower end stands first, and both differ",
            f"{path}: LOW before HIGH in {name}; for one value: {{choice: [{low:g}]}}",
        )
    if name.startswith("log") and low <= 0:
        raise ConfigError(
            f"the space draws {path} by {name} from {low:g}",
            "equal ratios need a lower end above 0",
            f"a lower end such as 0.001; {name.removeprefix('log')} takes 0, too",
        )


def _pair(path: str, ratio: Any, second: Levels | Interval | Options) -> RatePair:
    example = "stages.2.lr: {loggrid: [0.0005, 0.008, 5], ratio: 0.05}"
    if isinstance(second, Options) or not paths.takes_pair(path):
        raise ConfigError(
            f"the space draws {path} with a ratio",
            "it turns a drawn number x into the pair [ratio * x, x] of rates of a stage",
            example,
        )
    if not _is_number(ratio) or not 0 < ratio < math.inf:
        raise ConfigError(
            f"the space draws {path} with the ratio {ratio}",
            "it is the first rate of a pair divided by the second: a number above 0",
            example,
        )
    return RatePair(ratio, second)


def plain(value: Any) -> Any:
    """Returns a value of a YAML file as JSON holds it: keys are texts, and texts such as 1e-3 are
    numbers."""
    if isinstance(value, str) and NUMBER.fullmatch(value):
        return float(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
