"""What Ray and its workers take from the environment of a process, checked before anything starts.

A wrong variable would end in a traceback of Ray or torch, in minutes of silence, or in a hang. Commands ask before they
import Ray and torch, which takes many seconds, and so does a session before it starts. Imports neither.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from raytrain.errors import ConfigError, ResourceError

ADDRESS, MODE = "RAY_ADDRESS", "RAY_AUTH_MODE"
HOST_AND_PORT = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")
HIGHEST_PORT = 65535
# Ray itself would wait for two minutes, and then end this process.
HEAD_ANSWERS_S = 6.0
LINUX = sys.platform.startswith("linux")
# Of `struct sockaddr_un`, without the final zero byte.
LONGEST_SOCKET = 107 if LINUX else 103
# As Ray looks for the folder of its sessions; elsewhere TMPDIR is the system's own.
FOLDERS = ("RAY_TMPDIR", "TMPDIR") if LINUX else ("RAY_TMPDIR",)
SESSION = "session_2026-01-01_00-00-00_000000_{pid}"


def check(environment: Mapping[str, str] = os.environ) -> bool:
    """Checks all that a Ray session takes from the environment. Returns whether it is that of a cluster that runs already.

    Raises:
        ConfigError: a variable that cannot be meant so.
        ResourceError: no cluster answers at RAY_ADDRESS.
    """
    check_mode(environment)
    if not connects(environment):
        check_temporary_folder(environment)
        check_new_token(environment)
        return False
    check_head(environment)
    return True


def check_session() -> None:
    """As `check`, unless a session is open: before a command imports Ray and torch, which takes many seconds, or reads data."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        check()


def check_head(environment: Mapping[str, str] = os.environ) -> None:
    """Asks the head of the cluster that RAY_ADDRESS names.

    Raises:
        ConfigError: it wants another token.
        ResourceError: it does not answer.
    """
    address = cluster_address(environment)
    wrong = silence(address, environment)
    if wrong and not all(silence(other, environment) for other in _same_machine(address)):
        return
    if wrong:
        raise ResourceError(
            f"no Ray cluster answers at {address}: {wrong}",
            f"{ADDRESS}={environment[ADDRESS]} names the cluster to use",
            f"start its head (ray start --head), correct {ADDRESS}, or unset it to run on this machine",
        )


def connects(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether RAY_ADDRESS names a cluster that is there already; `local` starts a new one, as for Ray itself.

    Raises:
        ConfigError: it names none.
    """
    if ADDRESS not in environment:
        return False
    address = environment[ADDRESS]
    if address in ("auto", "local"):
        return address == "auto"
    matched = HOST_AND_PORT.fullmatch(address)
    if matched and 0 < int(matched[1]) <= HIGHEST_PORT:
        return True
    if address.startswith(("http://", "https://")):
        why = "that is the address for `ray job submit`; a command connects to the port of the head, mostly 6379"
        fix = f"ray job submit --address {address} -- ...; or export {ADDRESS}=HOST:6379 on a machine of the cluster"
    elif address.startswith("ray://"):
        why = (
            "that is the address of Ray's client, through which neither Ray Train nor Ray Tune runs"
        )
        fix = f"ray job submit --address http://HOST:8265 -- ...; or export {ADDRESS}=HOST:6379 on a machine of the cluster"
    else:
        why = "it is HOST:PORT of a cluster's head, or auto, or local"
        fix = f"export {ADDRESS}=127.0.0.1:6379; or unset {ADDRESS} to run on this machine"
    raise ConfigError(f'{ADDRESS}="{address}" is not the address of a Ray cluster', why, fix)


def cluster_address(environment: Mapping[str, str] = os.environ) -> str:
    """HOST:PORT of the cluster that RAY_ADDRESS names.

    Raises:
        ResourceError: it says `auto`, and this machine runs none.
    """
    if environment[ADDRESS] != "auto":
        return environment[ADDRESS]
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return str(canonicalize_bootstrap_address("auto"))
    except ConnectionError:
        raise ResourceError(
            f"{ADDRESS}=auto, and no Ray cluster runs on this machine",
            "auto is the cluster that this machine belongs to",
            f"ray start --head; or unset {ADDRESS} to run on this machine",
        ) from None


def silence(address: str, environment: Mapping[str, str] = os.environ) -> str:
    """What is wrong where no head of a Ray cluster answers at HOST:PORT; nothing where one does.

    Raises:
        ConfigError: it answers, and wants another token.
    """
    import grpc

    if environment.get("RAY_USE_TLS", "0") not in ("", "0"):
        return _refused_connection(address)  # the question itself would need the certificates
    # Ray sends a token that is there also where no mode is set.
    token = own_token(environment) if environment.get(MODE, "token").lower() == "token" else None
    metadata = [("authorization", f"Bearer {token}")] if token else None
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        # What Ray's own processes ask of a head; its public interface has no time limit.
        alive = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            alive(b"", timeout=HEAD_ANSWERS_S, metadata=metadata)
            return ""
        except grpc.RpcError as error:
            code = error.code()
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        raise _wrong_token(address, token)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"nothing in {HEAD_ANSWERS_S:.0f} s"
    if code == grpc.StatusCode.UNAVAILABLE:
        return _refused_connection(address) or "what listens there is no head of a Ray cluster"
    # Another service of Ray, such as the port of its client, does not know the question.
    return (
        "what listens there is no head of a Ray cluster"
        if code == grpc.StatusCode.UNIMPLEMENTED
        else ""
    )


def _same_machine(address: str) -> list[str]:
    """By what else Ray calls a head on this machine: it takes `localhost` for the address that others know it by."""
    host, _, port = address.rpartition(":")
    if host not in ("localhost", "127.0.0.1", "[::1]"):
        return []
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("8.8.8.8", 80))  # sends nothing
        return [f"{probe.getsockname()[0]}:{port}"]
    return []


def _refused_connection(address: str) -> str:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=HEAD_ANSWERS_S).close()
        return ""
    except OSError as error:
        return error.strerror or str(error)


def _wrong_token(address: str, token: str | None) -> ConfigError:
    what = "wants another token" if token else "wants a token, and none was sent"
    return ConfigError(
        f"the Ray cluster at {address} {what}",
        "whoever has its token runs code there",
        f"export {MODE}=token, and put the cluster's token (ray get-auth-token) into ~/.ray/auth_token",
    )


def check_mode(environment: Mapping[str, str] = os.environ) -> None:
    """Refuses a RAY_AUTH_MODE that Ray would take for `disabled`, and a token that is not there.

    Raises:
        ConfigError: as it says.
    """
    mode = environment.get(MODE, "")
    if mode.lower() not in ("", "disabled", "token"):
        raise ConfigError(
            f'{MODE}="{mode}" is neither token nor disabled',
            "Ray would run without any authentication",
            f"export {MODE}=token, or export {MODE}=disabled",
        )
    file = environment.get("RAY_AUTH_TOKEN_PATH")
    if (
        file
        and mode.lower() != "disabled"
        and not environment.get("RAY_AUTH_TOKEN")
        and own_token(environment) is None
    ):
        raise ConfigError(
            f"RAY_AUTH_TOKEN_PATH={file} cannot be read, or is empty",
            "the token of the Ray cluster is read from it",
            "ray get-auth-token --generate writes ~/.ray/auth_token; then unset RAY_AUTH_TOKEN_PATH",
        )
    if mode.lower() == "token" and connects(environment) and own_token(environment) is None:
        raise ConfigError(
            f"{MODE}=token, and there is no token",
            "the cluster would refuse this command",
            "put the cluster's token (ray get-auth-token, on its head) into ~/.ray/auth_token",
        )


def own_token(environment: Mapping[str, str] = os.environ) -> str | None:
    """The token that Ray would send: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"]
    try:
        file = environment.get("RAY_AUTH_TOKEN_PATH") or f"{_home(environment)}/.ray/auth_token"
        return Path(file).read_text().strip() or None
    except OSError:
        return None


def _home(environment: Mapping[str, str]) -> str:
    """The home folder; `~` where there is none, as for a user without an entry in the system's list."""
    return environment.get("HOME") or os.path.expanduser("~")


def check_new_token(environment: Mapping[str, str] = os.environ) -> None:
    """Checks that a new cluster can leave its token in the home folder, where Ray writes it.

    Raises:
        ConfigError: it cannot.
    """
    if environment.get(MODE, "token").lower() != "token" or own_token(environment) is not None:
        return
    folder = Path(_home(environment), ".ray")
    wrong = _not_writable(folder) if folder.is_absolute() else "there is no home folder"
    if wrong:
        raise ConfigError(
            f"Ray cannot write its token to {folder}: {wrong}",
            "a Ray cluster runs code for whoever has its token, so a new one makes a token first",
            f"export HOME=DIR with a folder that can be written; or export {MODE}=disabled on a machine of your own",
        )


def check_temporary_folder(environment: Mapping[str, str] = os.environ) -> None:
    """Checks the folder for the sockets and logs of a new cluster.

    Raises:
        ConfigError: its path is too long for sockets, relative, or it cannot be written.
    """
    name = next((name for name in FOLDERS if name in environment), None)
    if name is None:
        return
    base, fix = environment[name], "export RAY_TMPDIR=/tmp"
    if not os.path.isabs(base):
        raise ConfigError(
            f'{name}="{base}" is not an absolute path',
            "processes of Ray that run elsewhere would look for it there",
            fix,
        )
    socket_path = os.path.join(
        base, "ray", SESSION.format(pid=os.getpid()), "sockets", "plasma_store"
    )
    longer = len(os.fsencode(socket_path)) - LONGEST_SOCKET
    if longer > 0:
        raise ConfigError(
            f"{name}={base} is {longer} bytes too long",
            f"Ray keeps sockets below it, and the path of a socket has at most {LONGEST_SOCKET} bytes",
            fix,
        )
    wrong = _not_writable(Path(base, "ray"))
    if wrong:
        raise ConfigError(
            f"{name}={base} cannot be used: {wrong}", "Ray keeps its sockets and logs below it", fix
        )


def _not_writable(folder: Path) -> str:
    """Why nothing can be written into a folder, which is made where there is none; nothing where it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return "" if os.access(folder, os.W_OK | os.X_OK) else "it is not writable"
