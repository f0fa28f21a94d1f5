"""Client of Kaggle: lists the files of a competition or dataset and downloads them.

Kaggle's package signs in, lists the files and gives their addresses. The transfer is our own code:
kaggle 2.2 resumes by appending whatever answers its request, an error page too, to the partial
file. Messages never contain a secret, a signed address or text of the server. Imports neither torch
nor ray.
"""

from __future__ import annotations

import io
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import requests

from raytrain import storage
from raytrain.data.archives import size_text
from raytrain.errors import RemoteError, UnfinishedError

logger = logging.getLogger(__name__)

COMPETITION = "planet-understanding-the-amazon-from-space"
DATASET = "nikitarom/planets-dataset"
RULES = f"https://www.kaggle.com/competitions/{COMPETITION}/rules"
# Failures in a row without a new byte after which a transfer stops.
ATTEMPTS = 5
# Wait after the first failure in seconds; it doubles with each further one.
BACKOFF_S = 2.0
# A server that asks for a longer wait ends the command.
MAX_WAIT_S = 300.0
TIMEOUT_S = (15.0, 60.0)  # to connect, and between two reads
_PAGES = 10
_PAGE_SIZE = 200  # files on a page, Kaggle's maximum
# requests drops an incomplete chunk, so this is the most that a cut connection loses.
_CHUNK_BYTES = 2**15
_SHOWN_FILES = 12  # names of files in a message
_LOGIN = (
    "log in in one of three ways: "
    "KAGGLE_API_TOKEN, or the token in ~/.kaggle/access_token; "
    "KAGGLE_USERNAME and KAGGLE_KEY; "
    "~/.kaggle/kaggle.json (all from https://www.kaggle.com/settings). "
    "Or download in a browser and give --from PATH"
)
T = TypeVar("T")
BeforeTransfer = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes of the whole file; may raise to refuse it."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that Kaggle lists.

    Attributes:
        name: may be nested, as in `train_v2.csv/train_v2.csv`.
        size: bytes, 0 where unknown.
    """

    name: str
    size: int


class Cut(Exception):
    """A transfer ended before its last byte; the bytes that came are kept."""


@dataclass(frozen=True)
class _Setback:
    """A failure that may pass by itself.

    Attributes:
        what: the failure in words.
        wait_s: seconds that the server asks to wait, or None.
    """

    what: str
    wait_s: float | None = None


class Kaggle:
    """A signed-in client of one source.

    Attributes:
        source: "competition" or "dataset".
        slug: Kaggle's name of the source.
        available: names of the files that `files` found.
    """

    def __init__(self, source: str) -> None:
        """Signs in.

        Raises:
            RemoteError: there are no credentials, or Kaggle refuses them.
        """
        self.source = source
        self.slug = DATASET
        if source == "competition":
            self.slug = COMPETITION
        self.available: list[str] = []
        self._api = self._persist("Kaggle", _signed_in)

    def files(self) -> list[RemoteFile]:
        """Lists the files of the competition or dataset, at most the first two thousand.

        Raises:
            RemoteError: refused, or there is no such competition or dataset.
            UnfinishedError: Kaggle cannot be reached, or there were too many requests.
        """
        found: list[RemoteFile] = []
        token: str | None = None
        # The limit matters for a dataset with one file for each picture.
        for _ in range(_PAGES):
            page, token = self._persist("the list of files", partial(self._page, token))
            found += page
            if not token:
                break
        self.available = [file.name for file in found]
        return found

    def _page(self, token: str | None) -> tuple[list[RemoteFile], str | None]:
        """The files of a page, and the token of the next page or None."""
        with _silence():
            if self.source == "competition":
                answer = self._api.competition_list_files(self.slug, token, _PAGE_SIZE)
                rows = answer.files
            else:
                answer = self._api.dataset_list_files(self.slug, token, _PAGE_SIZE)
                rows = answer.dataset_files
        files = [RemoteFile(str(row.name), int(row.total_bytes or 0)) for row in rows]
        return files, answer.next_page_token

    def fetch(
        self,
        name: str | None,
        to: Path,
        size: int,
        before: BeforeTransfer,
        on_bytes: Callable[[int], None],
    ) -> None:
        """Downloads a file of the competition, or the whole dataset; resumes a partial download.

        Args:
            name: as listed; None for the whole dataset as one zip.
            to: path of the complete file. Until it is complete its bytes are in `to` with
                `.partial` added, and its identity in `.partial.json`.
            size: bytes that it must have, 0 where unknown.
            before: called before each transfer, see `BeforeTransfer`.
            on_bytes: called with the number of bytes of each piece that came.

        Raises:
            RemoteError: refused, missing, or another file than the one that is listed.
            UnfinishedError: cut too often, or too many requests; what came is kept.
            StorageError: the disk is full or cannot be written.
        """
        part = _Part(to)

        def transfer() -> None:
            # The address is asked for again at each attempt: a signed one expires in minutes.
            url, headers = self._address(name)
            part.transfer(url, headers, size, before, on_bytes)

        if not part.complete():
            self._persist(to.name, transfer, part.length)
        part.finish()

    def _address(self, name: str | None) -> tuple[str, dict[str, str]]:
        """URL and headers for a file, taken from the end of Kaggle's redirects."""
        # Imported late: importing Kaggle's package signs in.
        from kagglesdk.competitions.types.competition_api_service import ApiDownloadDataFileRequest
        from kagglesdk.datasets.types.dataset_api_service import ApiDownloadDatasetRequest

        with _silence(), self._api.build_kaggle_client() as client:
            if name is None:
                dataset = ApiDownloadDatasetRequest()
                dataset.owner_slug, dataset.dataset_slug = self.slug.split("/")
                response = client.datasets.dataset_api_client.download_dataset(dataset)
            else:
                file = ApiDownloadDataFileRequest()
                file.competition_name = self.slug
                file.file_name = name
                response = client.competitions.competition_api_client.download_data_file(file)
            # Its body would come from the first byte on, and without a timeout.
            response.close()
        kept = {}
        for key, value in response.request.headers.items():
            if key in ("Authorization", "User-Agent"):
                kept[key] = value
        return str(response.url), kept

    def _persist(
        self, label: str, act: Callable[[], T], length: Callable[[], int] = lambda: 0
    ) -> T:
        """Repeats an action over the network until it succeeds.

        Args:
            label: what it gets, for messages.
            act: the action.
            length: bytes that are there. Growth since the last failure counts as progress.

        Returns:
            What `act` returned.

        Raises:
            RemoteError: refused.
            UnfinishedError: `ATTEMPTS` failures without progress, or too long a wait.
        """
        best = length()
        failed = 0
        while True:
            try:
                return act()
            except (requests.RequestException, Cut) as error:
                setback = self._setback(error, label)
            except json.JSONDecodeError:
                raise _web_page(label) from None
            now = length()
            if now > best:
                best = now
                failed = 1
            else:
                failed += 1
            wait_s = setback.wait_s
            if wait_s is None:
                wait_s = BACKOFF_S * 2 ** (failed - 1)
            kept = ""
            if best:
                kept = f", {size_text(best)} are kept"
            if failed >= ATTEMPTS or wait_s > MAX_WAIT_S:
                raise _unfinished(label, setback, f"{failed} times in a row{kept}")
            logger.info(
                f"{label}: {setback.what}{kept}; "
                f"trying again in {wait_s:.0f} s ({failed} of {ATTEMPTS - 1})"
            )
            time.sleep(wait_s)

    def _setback(self, error: Exception, label: str) -> _Setback:
        """Describes a failure that may pass by itself; raises RemoteError for the others."""
        if isinstance(error, Cut):
            return _Setback(str(error))
        if not isinstance(error, requests.HTTPError) or error.response is None:
            # Only the type: the text of the error may contain a signed address.
            return _Setback(f"the connection failed ({type(error).__name__})")
        status = error.response.status_code
        if status == 429:
            wait_s = _retry_after(error.response)
            return _Setback("Kaggle takes no more requests for now (429)", wait_s)
        if status >= 500:
            return _Setback(f"Kaggle answers with a fault of its own ({status})")
        raise self._refusal(status, label)

    def _refusal(self, status: int, label: str) -> RemoteError:
        if status == 401:
            return RemoteError(
                "Kaggle does not accept the credentials (401)",
                "the token or key has expired or is mistyped",
                _LOGIN,
            )
        if status == 403:
            return self._forbidden(label)
        if status == 404:
            competition = self.source == "competition"
            return missing(label, self.slug, self.available, competition=competition)
        return RemoteError(
            f"Kaggle refuses {label} of {self.slug} ({status})",
            "",
            "try again later, or give --from PATH",
        )

    def _forbidden(self, label: str) -> RemoteError:
        what = f"Kaggle refuses {label} of {self.slug} (403)"
        if self.source == "competition":
            return RemoteError(
                what,
                "the competition's rules are not accepted yet, or a proxy blocks the download",
                f"open {RULES}, press Late Submission or I Understand and Accept, "
                "and run the same command again",
            )
        return RemoteError(
            what,
            "the dataset is not open to this user",
            f"open https://www.kaggle.com/datasets/{self.slug} in a browser, or give --from PATH",
        )


def missing(label: str, slug: str, available: list[str], *, competition: bool) -> RemoteError:
    """Returns the error for a file that Kaggle does not have (any more), with what it has.

    Args:
        label: the missing file.
        slug: Kaggle's name of the source.
        available: names of the files that are there.
        competition: whether the source is the competition and not the dataset.
    """
    listed = ", ".join(available[:_SHOWN_FILES]) or "none"
    if len(available) > _SHOWN_FILES:
        listed += f" and {len(available) - _SHOWN_FILES} more"
    if competition:
        why = "Kaggle withdrew the pictures from the competition at times"
        other = "dataset"
    else:
        why = "the dataset may be withdrawn"
        other = "competition"
    return RemoteError(
        f"{slug} has no {label}; available files: {listed}",
        why,
        f"raytrain download planet --from {other} --out DIR, "
        "or give an archive or folder that you have with --from PATH",
    )


def _unfinished(label: str, setback: _Setback, how_often: str) -> UnfinishedError:
    after = ""
    if setback.wait_s is not None:
        earliest = time.localtime(time.time() + setback.wait_s)
        after = f" after {time.strftime('%H:%M:%S', earliest)}"
    return UnfinishedError(
        f"stopped at {label}: {setback.what}, {how_often}",
        "further attempts would not help now, and nothing that came is lost",
        f"run the same command again{after}; it resumes the download",
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Hides what Kaggle's package prints: help, advice to update, and warnings about files."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _signed_in() -> Any:
    """Returns Kaggle's client.

    Importing its package signs in, prints, creates a configuration folder and may end the process.
    """
    try:
        with _silence():
            from kaggle.api.kaggle_api_extended import KaggleApi

            api = KaggleApi()
            api.authenticate()
        return api
    except SystemExit:
        raise RemoteError(
            "there are no credentials for Kaggle", "it gives files to signed-in users only", _LOGIN
        ) from None
    except ImportError as error:
        raise RemoteError(
            f"Kaggle's client cannot be imported: {error}",
            "it signs in and lists the files",
            "pip install kaggle six",
        ) from None


def _retry_after(response: requests.Response) -> float | None:
    """Seconds to wait by the header Retry-After, or None.

    The header holds whole seconds or a date (RFC 9110, section 10.2.3).
    """
    value = response.headers.get("Retry-After", "")
    try:
        if value.strip().isdigit():
            return max(0.0, float(value))
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _web_page(label: str) -> RemoteError:
    return RemoteError(
        f"a web page came in place of {label}",
        "it is a sign-in page, or the page of a network that asks to log in; nothing of it is kept",
        "open https://www.kaggle.com in a browser on this network, and run the same command again; "
        f"or {_LOGIN}",
    )


class _Part:
    """The partial download of a file.

    `NAME.partial` holds its bytes, `NAME.partial.json` the identity of the whole file: "validator"
    (an ETag or a date) and "size" in bytes.
    """

    def __init__(self, to: Path) -> None:
        self.to = to
        self.path = to.with_name(f"{to.name}.partial")
        self._marker = to.with_name(f"{to.name}.partial.json")

    def length(self) -> int:
        """Returns the number of bytes that came so far."""
        if not self.path.exists():
            return 0
        return self.path.stat().st_size

    def complete(self) -> bool:
        """Whether every byte is there and only the rename is left to do."""
        return 0 < self.length() == self._identity().get("size")

    def finish(self) -> None:
        """Renames the complete file to its final path."""
        with storage.failures("write", str(self.to)):
            # The bytes must be on the disk before the name is, in case the machine stops.
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
            self.path.replace(self.to)
            self._marker.unlink(missing_ok=True)
            storage.sync_directory(self.to.parent)

    def transfer(
        self,
        url: str,
        headers: dict[str, str],
        size: int,
        before: BeforeTransfer,
        on_bytes: Callable[[int], None],
    ) -> None:
        """Downloads the missing bytes in one request; see `Kaggle.fetch` for the arguments.

        Raises:
            Cut: the rest did not come.
            requests.RequestException: the request failed.
        """
        known = self._identity()
        start = 0
        if known:
            start = self.length()
        # "identity": a compressed answer would have other byte positions.
        asked = headers | {"Accept-Encoding": "identity"}
        if start:
            # If-Range: the server sends the whole file where it has changed (RFC 9110, 13.1.5).
            asked |= {"Range": f"bytes={start}-", "If-Range": known["validator"]}
        with requests.get(url, headers=asked, stream=True, timeout=TIMEOUT_S) as response:
            # 416: the range begins beyond the end of the file.
            if response.status_code == 416:
                self._begin({})
                raise Cut("the partial file does not fit the file at Kaggle any more")
            response.raise_for_status()
            start, whole = self._agreed(response, start, size)
            before(start, whole)
            self._append(response, on_bytes)
        if whole and self.length() != whole:
            raise Cut(f"{size_text(self.length())} of {size_text(whole)} came")

    def _append(self, response: requests.Response, on_bytes: Callable[[int], None]) -> None:
        with self.path.open("ab") as file:
            for chunk in response.iter_content(_CHUNK_BYTES):
                with storage.failures("write", str(self.path)):
                    file.write(chunk)
                    # So that a killed process loses none of it.
                    file.flush()
                on_bytes(len(chunk))

    def _agreed(self, response: requests.Response, start: int, size: int) -> tuple[int, int]:
        """Compares the answer with the request; starts the file anew unless the wanted rest came.

        Args:
            response: the answer.
            start: bytes that are there, so the position that was asked for.
            size: bytes that Kaggle lists, 0 where unknown.

        Returns:
            The position where the answer begins, and the bytes of the whole file (0 if unknown).

        Raises:
            Cut: another range came than was asked for.
            RemoteError: a web page, or a file of another size than listed.
        """
        if "text/html" in response.headers.get("Content-Type", ""):
            raise _web_page(self.to.name)
        # 206: a part of the file came, as asked for with Range.
        is_part = response.status_code == 206
        begin = 0
        whole = int(response.headers.get("Content-Length", size))
        if is_part:
            begin, whole = _range_of(response, whole + start)
        if size and whole != size:
            raise RemoteError(
                f"Kaggle lists {self.to.name} with {size} bytes and sends {whole}",
                "it is another file than the one that is listed, or not whole",
                "run the same command again later, or give --from PATH",
            )
        if is_part and begin == start:
            return start, whole
        if start:
            logger.info(
                f"{self.to.name}: it has changed at Kaggle since {size_text(start)} came; "
                "starting over"
            )
        identity = {}
        validator = _validator(response)
        if validator and whole:
            identity = {"validator": validator, "size": whole}
        self._begin(identity)
        if is_part:
            raise Cut("another part came than was asked for")
        return 0, whole

    def _begin(self, identity: dict[str, Any]) -> None:
        """Empties the partial file and records the identity of the whole one."""
        # Emptied first: a kill must not leave old bytes with a new identity.
        with storage.failures("write", str(self.path)):
            self.path.write_bytes(b"")
        storage.write_json(str(self._marker), identity)

    def _identity(self) -> dict[str, Any]:
        """What `_begin` recorded; empty where there is no usable record."""
        try:
            known = json.loads(self._marker.read_bytes())
        except (OSError, ValueError):
            return {}
        if not isinstance(known, dict) or not {"validator", "size"} <= set(known):
            return {}
        return known


def _range_of(response: requests.Response, otherwise: int) -> tuple[int, int]:
    """First position and whole size by the header `Content-Range: bytes 5-9/10`.

    Args:
        response: an answer with status 206.
        otherwise: the size to return where the header has none.

    Returns:
        The position, -1 if it is missing, and the size in bytes.
    """
    header = response.headers.get("Content-Range", "").removeprefix("bytes ")
    span, _, total = header.partition("/")
    begin = int(span.partition("-")[0] or -1)
    if total.isdigit():
        return begin, int(total)
    return begin, otherwise


def _validator(response: requests.Response) -> str | None:
    """The value for If-Range that identifies the bytes of the file, or None."""
    etag = response.headers.get("ETag", "")
    # A weak ETag means equal content, not equal bytes (RFC 9110, section 8.8.1).
    if etag and not etag.startswith("W/"):
        return str(etag)
    date = response.headers.get("Last-Modified")
    if date is None:
        return None
    return str(date)
