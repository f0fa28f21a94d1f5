"""An object store that answers each request after some time: a local folder behind s3:// URIs.

A file is looked up (HEAD) and read in one piece (GET), a folder is listed in pages of a thousand, as pyarrow does on S3.
"""

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from raytrain import storage

PAGE = 1000
BUCKET = "bucket"


class SlowStore(pafs.FileSystemHandler):
    """Forwards to a local folder, and counts and delays the requests."""

    def __init__(self, root: Path, delay_s: float) -> None:
        self.local = pafs.SubTreeFileSystem(str(root), pafs.LocalFileSystem())
        self.delay_s = delay_s
        self.requests = 0

    def _request(self, count: int = 1) -> None:
        self.requests += count
        time.sleep(self.delay_s * count)

    def get_type_name(self):
        return "slow"

    def normalize_path(self, path):
        return path

    def get_file_info(self, paths):
        self._request(len(paths))
        return self.local.get_file_info(paths)

    def get_file_info_selector(self, selector):
        found = self.local.get_file_info(selector)
        self._request(1 + len(found) // PAGE)
        return found

    def open_input_file(self, path):
        self._request(2)
        return pa.PythonFile(self.local.open_input_file(path), mode="r")

    def open_input_stream(self, path):
        self._request(2)
        return pa.PythonFile(self.local.open_input_stream(path), mode="r")

    def open_output_stream(self, path, metadata):
        self._request(1)
        return pa.PythonFile(self.local.open_output_stream(path), mode="w")

    def open_append_stream(self, path, metadata):
        raise NotImplementedError

    def create_dir(self, path, recursive):
        self.local.create_dir(path, recursive=recursive)

    def delete_dir(self, path):
        self.local.delete_dir(path)

    def delete_dir_contents(self, path, missing_dir_ok):
        self.local.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self):
        raise NotImplementedError

    def delete_file(self, path):
        self.local.delete_file(path)

    def move(self, source, destination):
        self.local.move(source, destination)

    def copy_file(self, source, destination):
        self.local.copy_file(source, destination)


def mounted(root: Path, delay_s: float) -> SlowStore:
    """Lets every s3://bucket/PATH of this process mean a path below ROOT/bucket."""
    handler = SlowStore(root, delay_s)
    filesystem = pafs.PyFileSystem(handler)
    storage._store = lambda uri: (filesystem, BUCKET)
    return handler
