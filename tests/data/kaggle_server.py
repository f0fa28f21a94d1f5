"""A small Kaggle on this machine: lists files, redirects to blobs, honours Range and If-Range, and fails as it is told.

The process that talks to it must set `KAGGLE_API_ENVIRONMENT=LOCALHOST` before kaggle is imported, and `redirect` it.
"""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK = 2**14


def redirect(port):
    """Points Kaggle's client of this process to a server, with small buffers: what was sent has come, or nearly."""
    from kagglesdk import kaggle_env
    from urllib3.connection import HTTPConnection

    HTTPConnection.default_socket_options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)]
    kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.LOCAL] = f"http://127.0.0.1:{port}"


class Fault(dict):
    """What goes wrong with the next answer about `where` ("list", "file" or "blob"): status, headers, cut, body, type."""


class KaggleServer:
    """Serves `files` (name to bytes).

    Attributes:
        faults: by where: a list of faults (None: none) for the next answers; the last one stays for ever if it says so.
        sent: bytes of blobs that were handed to the network; requests: (path, headers) in order.
        on_bytes: called with `sent` after each piece of a blob.
    """

    def __init__(self, files):
        self.files, self.faults, self.sent, self.requests = files, {}, 0, []
        self.etags = dict.fromkeys(files, '"one"')
        self.listed = {name: len(content) for name, content in files.items()}
        self.on_bytes = lambda sent: None
        self.key = None
        server = self

        class Handler(_Handler):
            kaggle = server

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *connection: None  # the client went away, as it may
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def fault(self, where):
        waiting = self.faults.get(where, [])
        return (
            waiting[0]
            if waiting and waiting[0] and waiting[0].get("for_ever")
            else waiting and waiting.pop(0)
        ) or {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)

    def log_message(self, *args):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        kaggle, method = self.kaggle, self.path.rsplit("/", 1)[-1]
        kaggle.requests.append((method, dict(self.headers)))
        listing = method.startswith("List")
        if "IntrospectToken" in method:
            return self._json({"active": True, "username": "someone"})
        fault = kaggle.fault("list" if listing else "file")
        if fault:
            return self._answer(fault)
        if not self.headers.get("Authorization"):
            return self._json({"code": 401, "message": "Unauthenticated"}, 401)
        if listing:
            rows = [
                {"name": name, "totalBytes": size, "ref": name}
                for name, size in kaggle.listed.items()
            ]
            return self._json(
                {"files" if "Data" in method and "Dataset" not in method else "datasetFiles": rows}
            )
        name = asked.get("fileName", "")
        if "Dataset" in method:
            name = "planets-dataset.zip"
        if name not in kaggle.files:
            return self._json({"code": 404, "message": "Not found"}, 404)
        self._answer({"status": 302, "headers": {"Location": f"/blob/{name}?Signature=s3cr3t"}})

    def do_GET(self):
        kaggle, name = self.kaggle, self.path.removeprefix("/blob/").split("?")[0]
        kaggle.requests.append((self.path, dict(self.headers)))
        # Kaggle's client opens the blob once to learn its address, ours then asks for it: only the second is real.
        fault = kaggle.fault("blob") if "Accept-Encoding" in self.headers and self._ours() else {}
        if "status" in fault or "body" in fault:
            return self._answer(fault)
        kaggle.etags[name] = fault.get("etag", kaggle.etags[name])
        content, begin = kaggle.files[name], 0
        asked = self.headers.get("Range")
        if asked and self.headers.get("If-Range") == kaggle.etags[name]:
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", kaggle.etags[name])
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        self._send(content, begin, int(len(content) * fault.get("cut", 1)))

    def _ours(self):
        return self.headers["Accept-Encoding"] == "identity"

    def _send(self, content, begin, end):
        try:
            for at in range(begin, end, CHUNK):
                piece = content[at : min(at + CHUNK, end)]
                self.wfile.write(piece)
                self.kaggle.sent += len(piece)
                if self._ours():
                    self.kaggle.on_bytes(self.kaggle.sent)
        except OSError:
            pass
        if end < len(content):
            time.sleep(0.01)
        self.close_connection = True

    def _json(self, content, status=200):
        self._answer({"status": status, "body": json.dumps(content), "type": "application/json"})

    def _answer(self, answer):
        body = answer.get("body", "").encode()
        self.send_response(answer.get("status", 200))
        for key, value in answer.get("headers", {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", answer.get("type", "text/plain"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
