"""Checks a space before anything starts: each value is allowed, used, and not the only one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

from raytrain.errors import ConfigError
from raytrain.search import paths
from raytrain.search.distributions import Interval
from raytrain.search.refusals import leaves, refuse_fixed, refuse_unused
from raytrain.search.space import GIVEN, Drawn, Schedule, Space, assembled

WHAT = "the space"
# Fields of a stage whose ranges depend on each other: a stage grows from start_size to size.
GROWTH = ("size", "start_size", "epochs")
# The names of stages that have none of their own: the number among those of a size, and the size.
DEFAULT_NAME = re.compile(r"stage-\d+-\d+", re.IGNORECASE)
# A quantile that gives no whole number between whole ends.
INSIDE = 0.381966
# Fields that stages may replace by their own.
REPLACED = {"train.batch_size": "batch_size", "data.augment": "augment"}


def check(space: Space) -> None:
    """Refuses a space with something in it that can never be drawn or used.

    Raises:
        ConfigError: with the path and the value.
    """
    for schedule in space.schedules:
        _check_use(space, schedule)
        _check_values(space, schedule)
        _check_names(schedule)
        for number in range(1, len(schedule.values["stages"]) + 1):
            _check_growth(schedule, number)
    _check_replaced(space)
    if space.size == 1:
        reason = "each field of the space has a single value"
        if not space.shared and not any(schedule.fields for schedule in space.schedules):
            reason = "the space draws no field"
        raise ConfigError(
            f"nothing is searched: {reason}",
            "all trials would be the same",
            "train.wd: {choice: [0.003, 0.01, 0.03]}",
        )


def _check_use(space: Space, schedule: Schedule) -> None:
    """Refuses fields that are the same for all trials, and those that no trial uses."""
    drawn_paths: set[str] = set()
    for drawn in (*space.shared, *schedule.fields):
        for value in drawn.distribution.to_check():
            drawn_paths |= leaves(drawn.path, value)
    refuse_fixed(sorted(drawn_paths), f"{WHAT} draws")
    refuse_unused(drawn_paths, space.given, f"{WHAT} draws")
    for drawn in schedule.fields:
        if paths.stage_of(drawn.path) not in schedule.numbers:
            first, last = schedule.trained
            raise ConfigError(
                f"{WHAT} draws {drawn.path}, and only the stages {first} to {last} are trained",
                "a value of another stage is never used",
                "leave out --stages, or the path",
            )


def _check_values(space: Space, schedule: Schedule) -> None:
    """Tries every choice, and both ends of every range."""
    label = _label(schedule)
    # A list may hold a mistake in a field that is not drawn.
    assembled(schedule, {}, label)
    for drawn in (*space.shared, *schedule.fields):
        for value in drawn.distribution.to_check():
            assembled(schedule, {drawn.path: value}, label)
        if isinstance(drawn.distribution, Interval):
            _check_inside(schedule, drawn, drawn.distribution)


def _check_inside(schedule: Schedule, drawn: Drawn, interval: Interval) -> None:
    """Refuses a range of fractions for a field of whole numbers."""
    value = interval.value(INSIDE)
    try:
        assembled(schedule, {drawn.path: value}, WHAT)
    except ConfigError:
        # Both ends are allowed, and what lies between them is not.
        low = round(interval.low)
        high = round(interval.high)
        raise ConfigError(
            f"{WHAT} draws {drawn.path} from {interval.low:g} to {interval.high:g}, "
            f"fractions such as {value:g} among them",
            f"{drawn.path} takes whole numbers",
            f"{drawn.path}: {{randint: [{low}, {high + 1}]}} draws {low} to {high}: "
            "the upper end of randint is exclusive",
        ) from None


def _check_names(schedule: Schedule) -> None:
    """Refuses a name of a stage that a drawn size could give to another one."""
    if not any(drawn.path.endswith(".size") for drawn in schedule.fields):
        return
    for number, stage in enumerate(schedule.values["stages"], 1):
        name = stage.get("name") or ""
        if DEFAULT_NAME.fullmatch(name):
            raise ConfigError(
                f'{_label(schedule)} draws sizes, and its stage {number} has the name "{name}"',
                "a stage of a drawn size could get the same name",
                f"{name}-own, or another name for stage {number}",
            )


def _check_growth(schedule: Schedule, number: int) -> None:
    """Tries the sizes and epochs of a stage together."""
    drawn_here = []
    for drawn in schedule.fields_of(number):
        if drawn.path.rpartition(".")[2] in GROWTH:
            drawn_here.append(drawn)
    if len(drawn_here) < 2:
        return
    for values in _combinations(drawn_here):
        assembled(schedule, values, _label(schedule))


def _combinations(fields: list[Drawn]) -> Iterator[dict[str, Any]]:
    """Values of some fields together: the ends of ordered ones, and all others."""
    choices = []
    for drawn in fields:
        values = drawn.distribution.to_check()
        if drawn.distribution.ordered:
            values = (values[0], values[-1])
        choices.append(values)
    names = [drawn.path for drawn in fields]
    for values in itertools.product(*choices):
        yield dict(zip(names, values, strict=True))


def _check_replaced(space: Space) -> None:
    """Refuses a field of the whole recipe that each stage replaces by its own."""
    for drawn in space.shared:
        for path, own in REPLACED.items():
            is_part = f"{drawn.path}.".startswith(f"{path}.")
            if is_part and all(_all_have(schedule, own) for schedule in space.schedules):
                raise ConfigError(
                    f"{WHAT} draws {drawn.path}, and every stage has its own {own}",
                    "the drawn value is never used",
                    f"draw stages.1.{own}, or leave {own} out of a stage",
                )


def _all_have(schedule: Schedule, own: str) -> bool:
    """Whether each stage has a field, whatever is drawn."""
    for number in schedule.numbers:
        path = f"stages.{number}.{own}"
        has_one = paths.value_at(schedule.values, path) is not None
        for drawn in schedule.fields_of(number):
            if drawn.path == path:
                # A choice may hold null, which stands for the common value.
                has_one = None not in drawn.distribution.to_check()
        if not has_one:
            return False
    return True


def _label(schedule: Schedule) -> str:
    """What the values of a list come from, for messages."""
    if schedule.name == GIVEN:
        return WHAT
    return f"{WHAT}, list {schedule.name}"
