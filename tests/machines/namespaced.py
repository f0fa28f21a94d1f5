"""Machines that are simulated on this one, each with a raylet, an address, a host name and disks of its own.

A machine is a group of Linux namespaces: network, mounts, processes, host name (man 7 namespaces). `ray.cluster_utils`
shares address, disk and cache among its nodes, so it finds none of the faults that these find. Needs root and iproute2.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
BRIDGE = "rtbr0"
SUBNET = "10.77.0"
# Seconds until a raylet has joined, where both cores are busy.
JOIN_S = 90
LOOPBACK_NAME = "127.0.1.1"
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"


def why_not() -> str:
    """Returns why machines cannot be simulated here; empty if they can."""
    if os.geteuid() != 0:
        return "simulated machines need root"
    tools = ("ip", "tc", "unshare", "nsenter", "mount")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        return f"simulated machines need {', '.join(missing)}"
    # A name of its own: several processes of pytest may ask at the same time.
    name = f"rt-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"no network namespace can be made here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


def run(*command: str) -> None:
    """Runs a command that has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def authentication(token: str | None) -> dict[str, str]:
    """The variables with which Ray asks for a token, or for none."""
    if token is None:
        return {"RAY_AUTH_MODE": "disabled"}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def outside(token: str | None) -> dict[str, str]:
    """The environment of a process that is on none of the machines."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    kept["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return kept | authentication(token)


@dataclass
class Machine:
    """One machine, which runs from `start` until `kill`.

    Attributes:
        number: from 1; the last part of its address.
        folder: of the cluster: `shared` is the same on each machine, `local` is its own.
        cpus: that it declares to Ray.
        gpus: that it declares to Ray. There are none.
        token: that its Ray asks for; None for a Ray that anybody may use.
        on_debian: whether its host name has the address 127.0.1.1, as after an installation of Debian or Ubuntu.
        is_unknown: whether its host name has no address at all.
    """

    number: int
    folder: Path
    cpus: int = 1
    gpus: int = 0
    token: str | None = None
    on_debian: bool = False
    is_unknown: bool = False
    process: subprocess.Popen | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def address(self) -> str:
        return f"{SUBNET}.{self.number}"

    @property
    def namespace(self) -> str:
        return f"rt-{self.name}"

    def start(self) -> None:
        """Connects it to the bridge and starts its raylet; number 1 is the head."""
        link = f"rtv{self.number}"
        run("ip", "netns", "add", self.namespace)
        run(*f"ip link add {link} type veth peer name eth0 netns {self.namespace}".split())
        run(*f"ip link set {link} master {BRIDGE} up".split())
        for words in (
            f"addr add {self.address}/24 dev eth0",
            "link set eth0 up",
            "link set lo up",
            f"route add default via {SUBNET}.254",
        ):
            run("ip", "-n", self.namespace, *words.split())
        alone = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--uts", "--kill-child"]
        log = (self.folder / f"{self.name}.log").open("a")
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *alone, "sh", "-c", self._script()],
            env=self._environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def _script(self) -> str:
        hosts = self.folder / f"hosts-{self.number}"
        hosts.write_text(self._hosts())
        local = self.folder / "local"
        where = f"--address={SUBNET}.1:6379"
        if self.number == 1:
            where = f"--head --port=6379 --dashboard-host={self.address} --dashboard-port=8265"
        return (
            f"hostname {self.name}; "
            f"mount -t tmpfs none {local}; mkdir {local}/tmp; "
            "mount -t tmpfs -o size=1g none /dev/shm; "
            f"mount --bind {hosts} /etc/hosts; "
            f"ray start {where} --node-ip-address={self.address} --num-cpus={self.cpus} --num-gpus={self.gpus} "
            "--object-store-memory=150000000 --disable-usage-stats --block; "
            # The shell stays as the first process, which reaps the children of ended jobs. Without one that does,
            # `ray job stop` waits its full time.
            "exit $?"
        )

    def _hosts(self) -> str:
        own = LOOPBACK_NAME if self.on_debian else self.address
        lines = ["127.0.0.1 localhost"]
        if not self.is_unknown:
            lines.append(f"{own} {self.name}")
        lines += [f"{SUBNET}.{n} node{n}" for n in range(1, 10) if n != self.number]
        return "\n".join(lines) + "\n"

    def _environment(self) -> dict[str, str]:
        local = self.folder / "local"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
        return (
            kept
            | {
                "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": "",
                "TMPDIR": f"{local}/tmp",
                "RAYTRAIN_CACHE": f"{local}/cache",
                "HOME": str(self.folder / "local"),
            }
            | authentication(self.token)
        )

    @property
    def first_pid(self) -> int:
        """The first process of its namespace, whose end is the end of all others."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        [pid] = children.read_text().split()
        return int(pid)

    def shell(self, *command: object, **environment: str) -> subprocess.CompletedProcess:
        """Runs a command on the machine, as somebody who is logged in there."""
        words = [str(word) for word in command]
        return subprocess.run(
            ["nsenter", "--target", str(self.first_pid), "--all", *words],
            cwd=ROOT,
            env=self._environment() | {"PYTHONPATH": str(ROOT)} | environment,
            capture_output=True,
            text=True,
            timeout=400,
        )

    def kill(self) -> None:
        """Ends all its processes at once, as if its power was cut."""
        if self.process is None:
            return
        os.kill(self.first_pid, signal.SIGKILL)
        self.process.wait(15)
        self.process = None
        # With the namespace it would vanish some time later, and the machine may start again at once.
        run("ip", "link", "del", f"rtv{self.number}")
        run("ip", "netns", "del", self.namespace)


class Cluster:
    """Machines on one network, the first of which is the head. A context manager."""

    def __init__(self, folder: Path, machines: list[dict]) -> None:
        """Makes the folders.

        Args:
            folder: with a short path, since Ray keeps sockets in it.
            machines: arguments of each `Machine`.
        """
        self.folder = folder
        self.token = machines[0].get("token")
        self.shared = folder / "shared"
        self.shared.mkdir()
        (folder / "local").mkdir()
        self.machines = [
            Machine(number, folder, **given) for number, given in enumerate(machines, 1)
        ]

    def __enter__(self) -> "Cluster":
        for machine in self.machines:
            # Left by a test that was killed.
            for left in (
                ["link", "del", f"rtv{machine.number}"],
                ["netns", "del", machine.namespace],
            ):
                subprocess.run(["ip", *left], capture_output=True)
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "addr", "add", f"{SUBNET}.254/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        try:
            for machine in self.machines:
                machine.start()
                self.wait_for(machine.number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *raised) -> None:
        for machine in self.machines:
            machine.kill()
        run("ip", "link", "del", BRIDGE)

    @property
    def dashboard(self) -> str:
        return f"http://{SUBNET}.1:8265"

    def wait_for(self, count: int) -> None:
        """Waits until so many machines have joined."""
        end = time.monotonic() + JOIN_S
        while time.monotonic() < end:
            if self.living() >= count:
                return
            time.sleep(0.5)
        logs = "\n".join(
            (self.folder / f"{m.name}.log").read_text()[-2000:] for m in self.machines[:count]
        )
        raise AssertionError(f"{count} machines did not join within {JOIN_S} s: {logs}")

    def living(self) -> int:
        """Number of machines that Ray counts as alive; 0 while the head does not answer."""
        try:
            nodes = self.ask("/nodes?view=summary")["summary"]
        except OSError:
            return 0
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)

    def ask(self, path: str) -> dict:
        """What the dashboard answers."""
        return json.loads(self.read(path))["data"]

    def read(self, path: str) -> str:
        """The text that the dashboard answers."""
        headers = {}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(self.dashboard + path, headers=headers)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()

    def machines_of_workers(self) -> list[str]:
        """Addresses of the machines on which workers of training ran, one for each worker."""
        actors = self.ask("/logical/actors")["actors"].values()
        return [
            actor["address"]["ipAddress"]
            for actor in actors
            if "TrainWorker" in actor["actorClass"]
        ]

    def submit(self, job: str, *arguments: object) -> subprocess.CompletedProcess:
        """Submits a job from outside, as from a laptop, and waits for its end."""
        command = self._submission(job, arguments)
        return self.outside(*command)

    def outside(self, *command: object, **variables: str) -> subprocess.CompletedProcess:
        """Runs a command of Ray outside of the machines."""
        return subprocess.run(
            [str(word) for word in command],
            cwd=ROOT,
            env=outside(self.token) | variables,
            capture_output=True,
            text=True,
            timeout=400,
        )

    def submitted(
        self, log: Path, job: str, *arguments: object, identifier: str = ""
    ) -> subprocess.Popen:
        """Submits a job from outside, and follows it in a file."""
        command = self._submission(job, arguments, identifier)
        with log.open("w") as file:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=outside(self.token),
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def _submission(
        self, job: str, arguments: tuple[object, ...], identifier: str = ""
    ) -> list[str]:
        command = ["ray", "job", "submit", "--address", self.dashboard, "--working-dir", "."]
        # As `train --print-submit` prints it: the head knows nothing of it.
        command += ["--runtime-env-json", json.dumps({"env_vars": {STOP_WAIT: "60"}})]
        if identifier:
            command += ["--submission-id", identifier]
        words = [str(argument) for argument in arguments]
        return [*command, "--", "python", f"jobs/{job}.py", *words]
