"""What Ray and its workers take from the environment: each mistake is a sentence, before anything starts."""

import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

from raytrain.distributed import environment
from raytrain.errors import ConfigError, ResourceError

HEAD = "/ray.rpc.NodeInfoGcsService/CheckAlive"
LIMIT_S = 10.0


def served(answer, method=HEAD):
    """A server that plays the head of a cluster: (address, server). `answer` gets the context of a call."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            if details.method == method:
                return grpc.unary_unary_rpc_method_handler(lambda request, context: answer(context))
            return None

    server = grpc.server(ThreadPoolExecutor(1), [Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return f"127.0.0.1:{port}", server


@pytest.fixture
def head():
    """The address of a head that answers and asks for no token."""
    address, server = served(lambda context: b"")
    yield address
    server.stop(None)


@pytest.fixture
def nobody():
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


# RAY_ADDRESS


@pytest.mark.parametrize(
    "address",
    [
        "",
        " ",
        "127.0.0.1",
        "127.0.0.1:",
        ":6379",
        "127.0.0.1:notaport",
        "127.0.0.1:0",
        "127.0.0.1:70000",
        "a host:6379",
        "127.0.0.1:6379 ",
        "::1:6379",
        "127.0.0.1:6379/",
        "head:63 79",
        "http://127.0.0.1:8265",
        "https://head:8265",
        "ray://127.0.0.1:10001",
        "Auto",
        "redis://h:6379",
    ],
)
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ConfigError, match="is not the address of a Ray cluster") as caught:
        environment.check({"RAY_ADDRESS": address})
    assert caught.value.fix and (address in caught.value.what)


@pytest.mark.parametrize(
    ("address", "connects"),
    [
        ("127.0.0.1:6379", True),
        ("head-0.cluster_1:6379", True),
        ("[::1]:6379", True),
        ("auto", True),
        ("local", False),
    ],
)
def test_an_address_as_ray_takes_it(address, connects):
    assert environment.connects({"RAY_ADDRESS": address}) is connects


def test_without_an_address_the_cluster_is_a_new_one(tmp_path):
    assert environment.check({"HOME": str(tmp_path)}) is False


def test_a_head_that_answers_is_connected_to(head):
    assert environment.check({"RAY_ADDRESS": head}) is True


def test_a_head_that_listens_where_others_know_this_machine_is_found_as_localhost(monkeypatch):
    asked = []
    monkeypatch.setattr(environment, "_same_machine", lambda address: ["192.0.2.2:6379"])
    answers = {"localhost:6379": "Connection refused", "192.0.2.2:6379": ""}
    monkeypatch.setattr(
        environment, "silence", lambda address, *rest: asked.append(address) or answers[address]
    )
    assert environment.check({"RAY_ADDRESS": "localhost:6379"}) and len(asked) == 2


def test_a_head_that_is_missing_is_a_want_of_resources(nobody):
    began = time.monotonic()
    with pytest.raises(
        ResourceError, match=f"no Ray cluster answers at {nobody}: Connection refused"
    ):
        environment.check({"RAY_ADDRESS": nobody})
    with pytest.raises(ResourceError, match=r"no Ray cluster answers at nowhere\.invalid:6379: "):
        environment.check({"RAY_ADDRESS": "nowhere.invalid:6379"})
    assert time.monotonic() - began < LIMIT_S


def test_who_listens_and_is_no_head_is_not_waited_for():
    web = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    # As the port of Ray's client answers.
    other, server = served(lambda context: b"", "/ray.rpc.RayletDriver/ClusterInfo")
    for address in (f"127.0.0.1:{web.server_port}", other):
        with pytest.raises(ResourceError, match="what listens there is no head of a Ray cluster"):
            environment.check({"RAY_ADDRESS": address})
    web.shutdown()
    web.server_close()
    server.stop(None)


def test_a_head_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(environment, "HEAD_ANSWERS_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ResourceError, match=r"nothing in 0 s|no head of a Ray cluster"):
            environment.check({"RAY_ADDRESS": f"127.0.0.1:{silent.getsockname()[1]}"})


SMOKE = ["--config", "smoke", "--dataset", "nowhere"]


@pytest.mark.parametrize(
    "command",
    [
        ["train", *SMOKE],
        ["train", *SMOKE, "--dry-run"],
        ["train", "--resume", "a", "--storage", "."],
        ["lr-find", *SMOKE],
        ["tune", *SMOKE, "--space", "space.yaml"],
        ["tune", "--thresholds", "nowhere.parquet"],
        ["ingest", "--images", "nowhere", "--labels", "nowhere.csv", "--out", "out"],
        ["quickstart"],
        ["bench"],
        ["predict", "--checkpoint", "a", "--dataset", "nowhere", "--out", "p.parquet"],
    ],
    ids=lambda words: " ".join([words[0], *words[-2:]]),
)
def test_every_command_that_starts_ray_says_so_before_it_imports_anything_heavy(
    command, nobody, tmp_path
):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text("{}")
    code = """
import os, sys
from raytrain.cli.main import run_command
for name, value in (("RAY_ADDRESS", sys.argv.pop(1)), ("RAY_ADDRESS", "http://h:8265"), ("RAY_TMPDIR", "/" + "x" * 99)):
    os.environ.pop("RAY_ADDRESS", None)
    os.environ[name] = value
    print(run_command(sys.argv[1:]), [module for module in ("torch", "ray") if module in sys.modules])
"""
    program = [sys.executable, "-c", code, nobody, *command]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["5 []", "2 []", "2 []"], done.stderr
    for word in ("no Ray cluster answers", "ray job submit --address", "bytes too long"):
        assert word in done.stderr
    assert "Traceback" not in done.stderr and sorted(os.listdir(tmp_path)) == ["a"]


def test_no_cluster_on_this_machine_for_auto(monkeypatch):
    def none(address):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address", none)
    with pytest.raises(
        ResourceError, match="RAY_ADDRESS=auto, and no Ray cluster runs on this machine"
    ):
        environment.check({"RAY_ADDRESS": "auto"})


# Tokens


@pytest.mark.parametrize(
    ("mode", "token"),
    [(None, ""), ("", ""), ("token", "a" * 64), (None, "a" * 64), ("disabled", "")],
)
def test_a_head_that_wants_another_token_is_a_wrong_setting(mode, token):
    seen = []

    def answer(context):
        seen.append(dict(context.invocation_metadata()).get("authorization"))
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")

    address, server = served(answer)
    with pytest.raises(
        ConfigError, match="wants another token" if token else "wants a token, and none was sent"
    ):
        variables = {"RAY_ADDRESS": address, "RAY_AUTH_TOKEN": token, "HOME": "/nowhere"}
        environment.check(variables | ({} if mode is None else {"RAY_AUTH_MODE": mode}))
    assert seen == [f"Bearer {token}" if token else None]
    server.stop(None)


@pytest.mark.parametrize("mode", ["tokn", "yes", "k8s", " token"])
def test_a_mode_that_ray_would_take_for_no_authentication_is_refused(mode):
    with pytest.raises(ConfigError, match=r"is neither token nor disabled"):
        environment.check({"RAY_AUTH_MODE": mode})


def test_a_token_that_is_not_there_is_named(head, tmp_path):
    cluster = {"RAY_AUTH_MODE": "token", "RAY_ADDRESS": head, "HOME": str(tmp_path)}
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE=token, and there is no token"):
        environment.check(cluster)
    with pytest.raises(ConfigError, match=r"RAY_AUTH_TOKEN_PATH=.* cannot be read, or is empty"):
        environment.check(cluster | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")})
    (tmp_path / "token").write_text("a" * 64 + "\n")
    assert environment.check(cluster | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")})
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("b" * 64)
    assert environment.check(cluster) and environment.own_token(cluster) == "b" * 64


def test_a_home_that_takes_no_token_is_named(tmp_path):
    (tmp_path / "home").write_text("no folder")
    with pytest.raises(
        ConfigError, match=r"Ray cannot write its token to .*: (Not a directory|File exists)"
    ):
        environment.check({"HOME": str(tmp_path / "home")})
    environment.check({"HOME": str(tmp_path / "home"), "RAY_AUTH_MODE": "disabled"})
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(ConfigError, match="there is no home folder"),
    ):
        patch.setattr(environment.os.path, "expanduser", lambda path: path)
        environment.check({})


# RAY_TMPDIR


def test_the_longest_folder_that_ray_takes_and_one_letter_more(tmp_path):
    """Ray's own check of its sockets is the oracle."""
    from ray._private.utils import validate_socket_filepath

    fits = None
    for letters in range(1, 60):
        base = f"/{'x' * letters}"
        name = f"session_2026-11-28_12-34-56_123456_{os.getpid()}"
        try:
            validate_socket_filepath(os.path.join(base, "ray", name, "sockets", "plasma_store"))
            fits = base
        except OSError:
            break
    writable = {"RAY_TMPDIR": fits}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "_not_writable", lambda folder: "")
        environment.check_temporary_folder(writable)
        with pytest.raises(ConfigError, match=r"RAY_TMPDIR=/x+ is 1 bytes too long") as caught:
            environment.check_temporary_folder({"RAY_TMPDIR": f"{fits}x"})
        assert caught.value.fix == "export RAY_TMPDIR=/tmp" and caught.value.exit_code == 2
        with pytest.raises(ConfigError, match=r"TMPDIR=/xé.* bytes too long"):  # bytes, not letters
            environment.check_temporary_folder({"TMPDIR": f"/x{'é' * (len(fits) // 2 + 1)}"})
        environment.check_temporary_folder(
            {"TMPDIR": "/" + "x" * 80, "RAY_TMPDIR": "/tmp"}
        )  # which goes first


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("/dev/null", "cannot be used"),
        ("here", "is not an absolute path"),
        ("", "is not an absolute path"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(value, said):
    with pytest.raises(ConfigError, match=f'RAY_TMPDIR="?{value}"? {said}'):
        environment.check_temporary_folder({"RAY_TMPDIR": value})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_a_folder_that_takes_no_files_is_named():
    with pytest.raises(ConfigError, match="TMPDIR=/proc cannot be used"):
        environment.check_temporary_folder({"TMPDIR": "/proc"})


def test_a_folder_of_a_cluster_that_runs_already_does_not_matter(head):
    assert environment.check({"RAY_ADDRESS": head, "RAY_TMPDIR": "/" + "x" * 90})
