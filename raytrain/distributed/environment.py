"""Checks what Ray and its workers take from the environment, before anything starts.

With a wrong variable, Ray or torch would end in a traceback, be silent for minutes or hang.
Commands make these checks before they import Ray and torch, which takes many seconds, and a session
makes them before it starts. The module itself imports neither at its top.
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

ADDRESS = "RAY_ADDRESS"
MODE = "RAY_AUTH_MODE"
# A host name, an IPv4 address or an IPv6 address in brackets, and a port.
HOST_AND_PORT = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")
HIGHEST_PORT = 65535
# Seconds to wait for the head of a cluster. Ray itself would wait for two minutes and then end this
# process.
HEAD_ANSWERS_S = 6.0
LINUX = sys.platform.startswith("linux")
# Bytes of the longest path of a Unix socket: the size of sun_path in `struct sockaddr_un`, without
# the final zero byte. On Linux that is 108 - 1 (man 7 unix), on macOS 104 - 1.
LONGEST_SOCKET = 107 if LINUX else 103
# Variables that name the directory for Ray's sessions, in the order in which Ray looks at them. On
# other systems than Linux TMPDIR is the system's own.
FOLDERS = ("RAY_TMPDIR", "TMPDIR") if LINUX else ("RAY_TMPDIR",)
# The name of a session's directory. Only its length matters here.
SESSION = "session_2026-01-01_00-00-00_000000_{pid}"
NO_HEAD = "what listens there is no head of a Ray cluster"

Environment = Mapping[str, str]


# Set before ray is imported. A variable that is already set keeps its value.
QUIET = {
    # 2 s by default: the end of a run, and two reports in a row, wait for it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # It logs a harmless error at every start.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # With the patch, what workers print appears twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # The actor pools of Ray Data log a harmless error; `info` brings all of Ray's lines back.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # The default of future versions; silences a warning at every start.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # Nobody reads metrics of a session that ends with its command.
    "RAY_enable_metrics_collection": "0",
    # One of the prestarted workers would stay idle; actors start their own just as fast.
    "RAY_prestart_worker_first_driver": "0",
    # 15 by default: a step waits for its slowest thread, and any other program would come first.
    "RAY_worker_niceness": "0",
}


def quiet_ray() -> None:
    """Sets what makes Ray quiet and quick, before it is imported."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def check(environment: Environment = os.environ) -> bool:
    """Checks all variables that a Ray session uses.

    Returns:
        Whether they name a cluster that is running already.

    Raises:
        ConfigError: a variable has a value that cannot be meant.
        ResourceError: no cluster answers at RAY_ADDRESS.
    """
    check_mode(environment)
    if connects(environment):
        check_head(environment)
        return True
    check_temporary_folder(environment)
    check_new_token(environment)
    return False


def check_session() -> None:
    """Makes the checks of `check`, unless a session is open already.

    Commands call it before they import Ray and torch or read data.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        check()


# The address of a cluster


def check_head(environment: Environment = os.environ) -> None:
    """Checks that the head of the cluster at RAY_ADDRESS answers.

    Raises:
        ConfigError: it expects another token.
        ResourceError: it does not answer.
    """
    address = cluster_address(environment)
    problem = silence(address, environment)
    if not problem:
        return
    for other in _same_machine(address):
        if not silence(other, environment):
            return
    raise ResourceError(
        f"no Ray cluster answers at {address}: {problem}",
        f"{ADDRESS}={environment[ADDRESS]} names the cluster to use",
        f"start its head (ray start --head), correct {ADDRESS}, or unset it to run on this machine",
    )


def connects(environment: Environment = os.environ) -> bool:
    """Returns whether RAY_ADDRESS names a running cluster.

    As for Ray itself, `auto` is a running cluster on this machine, and `local` starts a new one.

    Raises:
        ConfigError: the value is no address.
    """
    address = environment.get(ADDRESS)
    if address is None or address == "local":
        return False
    if address == "auto":
        return True
    matched = HOST_AND_PORT.fullmatch(address)
    if matched and 0 < int(matched[1]) <= HIGHEST_PORT:
        return True
    raise _no_address(address)


def _no_address(address: str) -> ConfigError:
    what = f'{ADDRESS}="{address}" is not the address of a Ray cluster'
    on_cluster = f"or export {ADDRESS}=HOST:6379 on a machine of the cluster"
    if address.startswith(("http://", "https://")):
        return ConfigError(
            what,
            "that is the address for `ray job submit`; a command connects to the port of the head, "
            "mostly 6379",
            f"ray job submit --address {address} -- ...; {on_cluster}",
        )
    if address.startswith("ray://"):
        return ConfigError(
            what,
            "that is the address of Ray's client, through which neither Ray Train nor Ray Tune "
            "runs",
            f"ray job submit --address http://HOST:8265 -- ...; {on_cluster}",
        )
    return ConfigError(
        what,
        "it is HOST:PORT of a cluster's head, or auto, or local",
        f"export {ADDRESS}=127.0.0.1:6379; or unset {ADDRESS} to run on this machine",
    )


def cluster_address(environment: Environment = os.environ) -> str:
    """Returns HOST:PORT of the cluster that RAY_ADDRESS names.

    Raises:
        ResourceError: it is `auto`, and no cluster runs on this machine.
    """
    address = environment[ADDRESS]
    if address != "auto":
        return address
    # Imported only here, since this import takes seconds.
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return str(canonicalize_bootstrap_address("auto"))
    except ConnectionError:
        raise ResourceError(
            f"{ADDRESS}=auto, and no Ray cluster runs on this machine",
            "auto is the cluster that this machine belongs to",
            f"ray start --head; or unset {ADDRESS} to run on this machine",
        ) from None


def silence(address: str, environment: Environment = os.environ) -> str:
    """Returns why no head of a Ray cluster answers at HOST:PORT; empty if one does.

    Raises:
        ConfigError: it answers, but expects another token.
    """
    import grpc

    if environment.get("RAY_USE_TLS", "0") not in ("", "0"):
        # The question below would need the cluster's certificates.
        return _refused_connection(address)
    token = None
    # Ray sends an existing token also if no mode is set.
    if environment.get(MODE, "token").lower() == "token":
        token = own_token(environment)
    code = _ask_head(address, token)
    if code is None:
        return ""
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        raise _wrong_token(address, token)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"nothing in {HEAD_ANSWERS_S:.0f} s"
    if code == grpc.StatusCode.UNAVAILABLE:
        return _refused_connection(address) or NO_HEAD
    if code == grpc.StatusCode.UNIMPLEMENTED:
        # Another service of Ray, such as the port of its client, does not know the question.
        return NO_HEAD
    # Any other error comes from a head, so one is there.
    return ""


def _ask_head(address: str, token: str | None) -> object:
    """Asks a head whether it is alive. Returns the gRPC status code of the failure, None if it is.

    The question is one that Ray's own processes ask. Ray's public functions have no time limit.
    """
    import grpc

    metadata = None
    if token:
        metadata = [("authorization", f"Bearer {token}")]
    # Ray's own connections ignore http_proxy, too.
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options=options) as channel:
        is_alive = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            # An empty message: all fields of the request are optional.
            is_alive(b"", timeout=HEAD_ANSWERS_S, metadata=metadata)
        except grpc.RpcError as error:
            code: object = error.code()
            return code
    return None


def _same_machine(address: str) -> list[str]:
    """Returns the address at which Ray starts a head on this machine, if the given one is local.

    Ray replaces `localhost` by the address at which other machines reach this one.
    """
    host, _, port = address.rpartition(":")
    if host not in ("localhost", "127.0.0.1", "[::1]"):
        return []
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Connecting a UDP socket sends nothing. It only chooses the local address that would be
        # used for this destination.
        probe.connect(("8.8.8.8", 80))
        own_host = probe.getsockname()[0]
        return [f"{own_host}:{port}"]
    return []


def _refused_connection(address: str) -> str:
    """Returns why a TCP connection to HOST:PORT fails; empty if it does not."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=HEAD_ANSWERS_S).close()
    except OSError as error:
        return _text_of(error)
    return ""


def _text_of(error: OSError) -> str:
    return error.strerror or str(error)


# Tokens


def _wrong_token(address: str, token: str | None) -> ConfigError:
    demand = "wants a token, and none was sent"
    if token:
        demand = "wants another token"
    return ConfigError(
        f"the Ray cluster at {address} {demand}",
        "whoever has its token runs code there",
        f"export {MODE}=token, "
        "and put the cluster's token (ray get-auth-token) into ~/.ray/auth_token",
    )


def check_mode(environment: Environment = os.environ) -> None:
    """Checks RAY_AUTH_MODE, and that a token which is needed can be read.

    Raises:
        ConfigError: Ray would take the mode for `disabled`, or there is no token.
    """
    mode = environment.get(MODE, "")
    if mode.lower() not in ("", "disabled", "token"):
        raise ConfigError(
            f'{MODE}="{mode}" is neither token nor disabled',
            "Ray would run without any authentication",
            f"export {MODE}=token, or export {MODE}=disabled",
        )
    if mode.lower() == "disabled":
        return
    # RAY_AUTH_TOKEN holds the token itself, so no file is read then.
    file = environment.get("RAY_AUTH_TOKEN_PATH")
    if file and not environment.get("RAY_AUTH_TOKEN") and own_token(environment) is None:
        raise ConfigError(
            f"RAY_AUTH_TOKEN_PATH={file} cannot be read, or is empty",
            "the token of the Ray cluster is read from it",
            "ray get-auth-token --generate writes ~/.ray/auth_token; "
            "then unset RAY_AUTH_TOKEN_PATH",
        )
    # A new cluster makes its own token, so only an existing one needs it here.
    if mode.lower() == "token" and connects(environment) and own_token(environment) is None:
        raise ConfigError(
            f"{MODE}=token, and there is no token",
            "the cluster would refuse this command",
            "put the cluster's token (ray get-auth-token, on its head) into ~/.ray/auth_token",
        )


def own_token(environment: Environment = os.environ) -> str | None:
    """Returns the token that Ray would send, or None if there is none.

    Ray looks at RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH and ~/.ray/auth_token, in this order.
    """
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"]
    try:
        token = Path(token_file(environment)).read_text().strip()
    except OSError:
        return None
    return token or None


def token_file(environment: Environment = os.environ) -> str:
    """Returns the path of the file that Ray reads its token from."""
    return environment.get("RAY_AUTH_TOKEN_PATH") or f"{_home(environment)}/.ray/auth_token"


def _home(environment: Environment) -> str:
    """Returns the home directory; `~` if there is none.

    That is so for a user without an entry in /etc/passwd, as in some containers.
    """
    return environment.get("HOME") or os.path.expanduser("~")


def check_new_token(environment: Environment = os.environ) -> None:
    """Checks that Ray can write the token of a new cluster to the home directory.

    Raises:
        ConfigError: it cannot.
    """
    if environment.get(MODE, "token").lower() != "token":
        return
    if own_token(environment) is not None:  # the new cluster uses this one
        return
    folder = Path(_home(environment), ".ray")
    problem = "there is no home folder"
    if folder.is_absolute():
        problem = _not_writable(folder)
    if problem:
        raise ConfigError(
            f"Ray cannot write its token to {folder}: {problem}",
            "a Ray cluster runs code for whoever has its token, so a new one makes a token first",
            f"export HOME=DIR with a folder that can be written; "
            f"or export {MODE}=disabled on a machine of your own",
        )


# The temporary folder


def check_temporary_folder(environment: Environment = os.environ) -> None:
    """Checks the folder for the sockets and logs of a new cluster, if a variable names one.

    Raises:
        ConfigError: its path is relative or too long for a socket, or it cannot be written.
    """
    for name in FOLDERS:
        if name in environment:
            # Ray looks only at the first variable that is set.
            _check_folder(name, environment[name])
            return


def _check_folder(name: str, base: str) -> None:
    fix = "export RAY_TMPDIR=/tmp"
    if not os.path.isabs(base):
        raise ConfigError(
            f'{name}="{base}" is not an absolute path',
            "processes of Ray that run in another folder would look for it there",
            fix,
        )
    session = SESSION.format(pid=os.getpid())
    socket_path = os.path.join(base, "ray", session, "sockets", "plasma_store")
    # The limit is in bytes, and a letter such as é has two of them.
    too_long_by = len(os.fsencode(socket_path)) - LONGEST_SOCKET
    if too_long_by > 0:
        raise ConfigError(
            f"{name}={base} is {too_long_by} bytes too long",
            f"Ray keeps sockets in it, and the path of a socket has at most {LONGEST_SOCKET} bytes",
            fix,
        )
    problem = _not_writable(Path(base, "ray"))
    if problem:
        raise ConfigError(
            f"{name}={base} cannot be used: {problem}",
            "Ray keeps its sockets and logs in it",
            fix,
        )


def _not_writable(folder: Path) -> str:
    """Makes a folder if needed. Returns why it cannot be written; empty if it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return _text_of(error)
    if os.access(folder, os.W_OK | os.X_OK):
        return ""
    return "it is not writable"
