"""Mistakes in a command line, in words for its user: what cyclopts could not parse."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

import cyclopts
from pydantic import ValidationError

from raytrain.config import STAGE_ONLY, as_config_error, stage_field_hint
from raytrain.errors import ConfigError


def usage_error(error: cyclopts.CycloptsError, argv: Sequence[str]) -> ConfigError:
    """The error of cyclopts as one of ours, which suggests only flags that exist.

    Args:
        error: raised while the command line was parsed.
        argv: the command line, without the program's name.
    """
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        return as_config_error(cause)
    help_command = " ".join(["raytrain", *(error.command_chain or ()), "--help"])
    if isinstance(error, cyclopts.UnknownOptionError):
        return _unknown_flag(error, argv, help_command)
    if isinstance(error, cyclopts.UnusedCliTokensError):
        unused = " ".join(error.unused_tokens or [])
        return ConfigError(f"unexpected argument {unused}", "", help_command)
    group = _group_flags(error)
    if group:
        flag, members = group
        return ConfigError(f"{flag} is not a flag", f"there are {', '.join(members)}", help_command)
    return ConfigError(str(error).strip(), "", help_command)


def _unknown_flag(
    error: cyclopts.UnknownOptionError, argv: Sequence[str], help_command: str
) -> ConfigError:
    flag = (error.token.keyword or error.token.value).partition("=")[0]
    known = _flags(error.argument_collection)
    what = f"unknown flag {flag}"
    path = flag.removeprefix("--").replace("-", "_")
    # Only commands that train take fields of stages: predict has no rate.
    if "--set" in known:
        if re.match(r"stages\.\d", path):
            value = _value_of(flag, argv) or "VALUE"
            path = re.sub(r"^stages\.0\b", "stages.1", path)
            return ConfigError(
                what,
                "a field of a stage is set by --set, and stages are counted from 1",
                f"--set {path}={value}",
            )
        field = path.rpartition(".")[2]
        if field in STAGE_ONLY:
            return ConfigError(what, *stage_field_hint(field, _value_of(flag, argv)))
    # Without the hyphens, which would make short flags look similar.
    names = [name.lstrip("-") for name in known]
    near = get_close_matches(flag.lstrip("-"), names, n=1, cutoff=0.6)
    if near:
        what = f"{what}. Did you mean --{near[0]}?"
    return ConfigError(what, "", help_command)


def _flags(arguments: cyclopts.ArgumentCollection) -> list[str]:
    """The flags of a command that can be typed."""
    flags = []
    for argument in arguments:
        # `--train` is in the collection because of `--train.wd`, but takes no value that makes
        # sense on a command line.
        if argument.parse and not argument.children:
            flags += [name for name in argument.names if name.startswith("--")]
    return flags


def _group_flags(error: cyclopts.CycloptsError) -> tuple[str, list[str]] | None:
    """The flag that only groups others, if the mistake is about one, and those that it groups."""
    argument = error.argument
    if argument is None or not argument.children:
        return None
    return argument.name, [child.name for child in argument.children]


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    """The value that follows a flag in a command line; None if there is none."""
    for index, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name != flag:
            continue
        if equals:
            return value
        following = argv[index + 1 : index + 2]
        if following and not following[0].startswith("--"):
            return following[0]
    return None
