"""YAML as recipes are written in it. Imported late, since PyYAML takes time to load."""

from __future__ import annotations

from typing import Any

import yaml

TEXT = "tag:yaml.org,2002:str"
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its numbers to the base of 60, in which 2:8 is 128."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]  # of PyYAML
        if tag in NUMBERS and ":" in value:
            return TEXT
        return tag


def load(text: str) -> Any:
    """Returns the values in a YAML text.

    Raises:
        yaml.YAMLError: it is not valid YAML.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
