"""Asks machines what `raytrain doctor` judges.

Without RAY_ADDRESS only this machine is looked at, and no Ray is started.
"""

from __future__ import annotations

import os
import stat
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from raytrain import machine, storage
from raytrain.data.dataset import open_dataset
from raytrain.distributed import environment, links
from raytrain.distributed.diagnosis import (
    FAILURE,
    NOTE,
    Finding,
    Here,
    diagnosed,
    of_links,
    of_ports,
)
from raytrain.distributed.network import is_loopback
from raytrain.distributed.nodes import Answer, ask, marked, working_nodes
from raytrain.distributed.session import session
from raytrain.errors import ConfigError, StorageError
from raytrain.machine import Question

# MB that are written to the storage and read back.
STORAGE_MB = 8
# Seconds that a dashboard may take to answer.
DASHBOARD_S = 6.0


@dataclass(frozen=True)
class Examined:
    """The result of an examination.

    Attributes:
        findings: one for each line.
        answers: the facts they rest on.
    """

    findings: list[Finding]
    answers: list[Answer]

    @property
    def is_sound(self) -> bool:
        """Whether nothing would fail."""
        return all(finding.level != FAILURE for finding in self.findings)


def examine(storage_path: str | None, dataset: str | None, bandwidth: bool) -> Examined:
    """Looks at this machine, or at all machines of the cluster at RAY_ADDRESS.

    Args:
        storage_path: directory or URI that runs are stored in; None to leave it out.
        dataset: directory or URI of a dataset; None to leave it out.
        bandwidth: whether links between machines are measured, which takes a while.

    Raises:
        RaytrainError: the cluster does not answer, or storage or dataset cannot be used here.
    """
    question = Question(gpus=True, megabytes=STORAGE_MB)
    if storage_path is not None:
        question = replace(question, directories=(storage.absolute(storage_path),))
    needed = None
    if dataset is not None:
        opened = open_dataset(dataset)
        question = replace(question, files=(storage.join(opened.path, "dataset.json"),))
        layout = opened.rows * opened.tile_size**2 * opened.tile_format.channels
        needed = layout * opened.tile_format.bytes_per_value
    if not environment.connects():
        return _this_machine(question, needed, bandwidth)
    with session():
        return _cluster(question, needed, bandwidth)


def _this_machine(question: Question, needed: int | None, bandwidth: bool) -> Examined:
    if bandwidth:
        raise ConfigError(
            "--bandwidth measures links between machines, and RAY_ADDRESS names no cluster",
            "one machine has no links",
            "export RAY_ADDRESS=HOST:6379 on a machine of the cluster, or leave it out",
        )
    return _alone(question, needed, secrets(None))


def _alone(question: Question, needed: int | None, findings: list[Finding]) -> Examined:
    """Looks at the machine of the command alone, and adds what it finds."""
    facts = machine.facts(question)
    if not environment.connects():
        # A Ray of this machine alone raises the limit when a command starts it.
        facts = replace(facts, open_files=machine.raised_open_files())
    # A local Ray declares what torch sees.
    node = {
        "NodeManagerHostname": facts.host,
        "NodeManagerAddress": "this machine",
        "Resources": {"CPU": float(machine.usable_cpus())},
    }
    answers = [Answer(node, facts)]
    here = Here(facts, facts.files, needed)
    return Examined([*findings, *diagnosed(answers, here)], answers)


def _cluster(question: Question, needed: int | None, bandwidth: bool) -> Examined:
    nodes = working_nodes()
    findings = secrets(_dashboard())
    if not nodes:
        what = "the cluster has no machine that may work now; this one was looked at"
        findings.append(Finding(NOTE, "", what, "--wait 600 lets an autoscaler add machines"))
        return _alone(question, needed, findings)
    try:
        with marked(question.directories) as marker:
            answers = ask(nodes, replace(question, marker=marker))
    except StorageError as error:
        # This machine cannot write there, so it has no marker that the others could look for.
        findings.append(Finding(FAILURE, "this machine", error.what, error.fix))
        answers = ask(nodes, replace(question, directories=()))
    own = machine.facts(replace(question, directories=(), gpus=False))
    findings += diagnosed(answers, Here(own, own.files, needed))
    living = [answer.node for answer in answers if answer.facts is not None]
    if len(living) > 1:
        findings += of_ports(links.blocked(living))
        if bandwidth:
            findings += of_links(links.measured(living), links.MEGABYTES)
    return Examined(findings, answers)


# Secrets


def _dashboard() -> str:
    """Returns HOST:PORT of the dashboard of the connected cluster; empty without one."""
    found: str | None = ray._private.worker.global_worker.node.webui_url
    return found or ""


def secrets(dashboard: str | None, variables: Mapping[str, str] = os.environ) -> list[Finding]:
    """Judges who can run code on the cluster.

    Args:
        dashboard: HOST:PORT of the dashboard; None where no cluster is looked at.
        variables: of this process.
    """
    found = []
    file = Path(environment.token_file(variables))
    if file.is_file() and stat.S_IMODE(file.stat().st_mode) & 0o077:
        what = f"the token {file} can be read by other users, who could run code with it"
        found.append(Finding(FAILURE, "this machine", what, f"chmod 600 {file}"))
    if not dashboard:
        return found
    host, _, _ = dashboard.rpartition(":")
    if not is_loopback(host) and is_open(dashboard):
        what = f"the dashboard at {dashboard} takes jobs from everybody who reaches it"
        fix = f"export {environment.MODE}=token on every machine before ray start"
        found.append(Finding(FAILURE, "", what, fix))
    return found


def is_open(dashboard: str) -> bool:
    """Returns whether a dashboard lists its jobs to somebody without a token.

    The cluster is asked: what this process has in its variables says nothing about it.

    Args:
        dashboard: HOST:PORT.
    """
    # As Ray's own connections, without a proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"http://{dashboard}/api/jobs/", timeout=DASHBOARD_S).close()
    except OSError:
        # It refuses (401), or cannot be reached from here.
        return False
    return True
