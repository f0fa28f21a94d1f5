"""The command `raytrain doctor`: what works here, and what would fail."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from raytrain.distributed.environment import check_session

if TYPE_CHECKING:
    from raytrain.distributed.doctor import Examined

# As for other resources that cannot be had.
FAILING = 5


def doctor(
    *,
    storage: Annotated[
        str | None, Parameter(help="also try this storage from every machine")
    ] = None,
    dataset: Annotated[
        str | None, Parameter(help="also look for this dataset from every machine")
    ] = None,
    bandwidth: Annotated[
        bool, Parameter(negative="", help="also measure the links between machines")
    ] = False,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="print the facts as JSON")
    ] = False,
) -> int:
    """Look at this machine, or at all machines of the cluster at RAY_ADDRESS.

    Each line is ok, a note or a failure. Only failures exit with code 5.
    """
    check_session()
    from raytrain.distributed.doctor import examine

    found = examine(storage, dataset, bandwidth)
    if as_json:
        print(json.dumps(_content(found), indent=1))
    else:
        for finding in found.findings:
            print(finding)
    if found.is_sound:
        return 0
    return FAILING


def _content(found: Examined) -> dict[str, Any]:
    machines = {}
    for answer in found.answers:
        facts = None if answer.facts is None else asdict(answer.facts)
        machines[answer.name] = {"facts": facts, "clock_s": answer.clock_s}
    return {"findings": [asdict(finding) for finding in found.findings], "machines": machines}
