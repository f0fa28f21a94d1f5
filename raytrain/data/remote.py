"""Kaggle: what a competition or dataset holds, and its files, with cut transfers resumed.

Kaggle's client signs in, lists and gives the address of a file; the transfer is ours, because kaggle 2.2's resume writes
whatever answers a request for the rest of a file, an error page too, over the part that is there. No secret and no
signed address is printed: errors are told in our words, never in the server's. No torch, no ray.
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
ATTEMPTS = 5  # in a row without a new byte
BACKOFF_S = 2.0
MAX_WAIT_S = 300.0
TIMEOUT_S = (15.0, 60.0)  # to connect, and for the next bytes
_PAGES, _PAGE_SIZE = 10, 200
_CHUNK = 2**15  # what a cut takes of the bytes that came
_LOGIN = (
    "log in in one of three ways: KAGGLE_API_TOKEN, or the token in ~/.kaggle/access_token; KAGGLE_USERNAME and KAGGLE_KEY; "
    "~/.kaggle/kaggle.json (all from https://www.kaggle.com/settings). "
    "Or download in a browser and give --from PATH"
)
T = TypeVar("T")
Ready = Callable[[int, int], None]


@dataclass(frozen=True)
class RemoteFile:
    """A file that Kaggle lists: its name, maybe nested as in `train_v2.csv/train_v2.csv`, and its bytes (0: unknown)."""

    name: str
    size: int


class Cut(Exception):
    """A transfer ended before its last byte; what came is kept."""


class Kaggle:
    """A signed-in client of one source: "competition" or "dataset"."""

    def __init__(self, source: str) -> None:
        """Signs in.

        Raises:
            RemoteError: no credentials, or they are refused.
        """
        self.source = source
        self.slug = COMPETITION if source == "competition" else DATASET
        self.available: list[str] = []
        self._api = self._persist("Kaggle", _signed_in)

    def files(self) -> list[RemoteFile]:
        """What the competition or dataset holds; of a dataset with a picture a file, the first two thousand.

        Raises:
            RemoteError: refused, or no such competition or dataset.
            UnfinishedError: unreachable, or too many requests.
        """
        found: list[RemoteFile] = []
        token: str | None = None
        for _ in range(_PAGES):
            page, token = self._persist("the list of files", partial(self._page, token))
            found += page
            if not token:
                break
        self.available = [file.name for file in found]
        return found

    def _page(self, token: str | None) -> tuple[list[RemoteFile], str | None]:
        competition = self.source == "competition"
        with _silence():
            ask = self._api.competition_list_files if competition else self._api.dataset_list_files
            answer = ask(self.slug, token, _PAGE_SIZE)
        rows = answer.files if competition else answer.dataset_files
        return [
            RemoteFile(str(row.name), int(row.total_bytes or 0)) for row in rows
        ], answer.next_page_token

    def fetch(
        self, name: str | None, to: Path, size: int, ready: Ready, tell: Callable[[int], None]
    ) -> None:
        """Downloads a file of the competition, or with None the whole dataset as one zip; goes on with a part of it.

        Args:
            name: as listed.
            to: where the whole file will be; until then it is `to` with `.partial`, and its identity `.partial.json`.
            size: bytes that it must have, 0 where unknown.
            ready: is called with (bytes that are there, bytes of the whole) before a transfer; may refuse it.
            tell: is told the bytes of each piece that came.

        Raises:
            RemoteError: refused, not there, or not the file that is listed.
            UnfinishedError: cut too often, or too many requests; what came is kept.
            StorageError: the disk is full or cannot be written.
        """
        part = _Part(to)
        if not part.complete():
            self._persist(
                to.name, lambda: part.transfer(*self._address(name), size, ready, tell), part.length
            )
        part.finish()

    def _address(self, name: str | None) -> tuple[str, dict[str, str]]:
        """URL and headers that give a file: where Kaggle's redirect ends, often signed and valid for minutes."""
        from kagglesdk.competitions.types.competition_api_service import ApiDownloadDataFileRequest
        from kagglesdk.datasets.types.dataset_api_service import ApiDownloadDatasetRequest

        with _silence(), self._api.build_kaggle_client() as client:
            if name is None:
                dataset = ApiDownloadDatasetRequest()
                dataset.owner_slug, dataset.dataset_slug = self.slug.split("/")
                response = client.datasets.dataset_api_client.download_dataset(dataset)
            else:
                file = ApiDownloadDataFileRequest()
                file.competition_name, file.file_name = self.slug, name
                response = client.competitions.competition_api_client.download_data_file(file)
            response.close()  # its body would come from the first byte on, and without a timeout
        kept = {
            key: value
            for key, value in response.request.headers.items()
            if key in ("Authorization", "User-Agent")
        }
        return str(response.url), kept

    def _persist(
        self, label: str, act: Callable[[], T], length: Callable[[], int] = lambda: 0
    ) -> T:
        """Does something over the network until it is done, refused, or has failed `ATTEMPTS` times without progress."""
        best, failed = length(), 0
        while True:
            try:
                return act()
            except (requests.RequestException, Cut) as error:
                what, wait = self._trouble(error, label)
            except json.JSONDecodeError:
                raise _web_page(label) from None
            failed, best = (1, length()) if length() > best else (failed + 1, best)
            kept = f", {size_text(best)} are kept" if best else ""
            seconds = BACKOFF_S * 2 ** (failed - 1) if wait is None else wait
            if failed >= ATTEMPTS or seconds > MAX_WAIT_S:
                after = (
                    ""
                    if wait is None
                    else f" after {time.strftime('%H:%M:%S', time.localtime(time.time() + wait))}"
                )
                raise UnfinishedError(
                    f"stopped at {label}: {what}, {failed} times in a row{kept}",
                    "trying on would not help now, and nothing that came is lost",
                    f"run the same command again{after}; it goes on from there",
                )
            logger.info(
                f"{label}: {what}{kept}; trying again in {seconds:.0f} s ({failed} of {ATTEMPTS - 1})"
            )
            time.sleep(seconds)

    def _trouble(self, error: Exception, label: str) -> tuple[str, float | None]:
        """What passes by itself, and the seconds that the server asks to wait; raises RemoteError for the rest."""
        if not isinstance(error, requests.HTTPError) or error.response is None:
            return str(error) if isinstance(
                error, Cut
            ) else f"the connection failed ({type(error).__name__})", None
        status = error.response.status_code
        if status == 429:
            return "Kaggle takes no more requests for now (429)", _retry_after(error.response)
        if status >= 500:
            return f"Kaggle answers with a fault of its own ({status})", None
        raise self._refusal(status, label)

    def _refusal(self, status: int, label: str) -> RemoteError:
        competition = self.source == "competition"
        if status == 401:
            return RemoteError(
                "Kaggle does not accept the credentials (401)",
                "the token or key has expired or is mistyped",
                _LOGIN,
            )
        if status == 403:
            return RemoteError(
                f"Kaggle refuses {label} of {self.slug} (403)",
                "the competition's rules are not accepted yet, or a proxy stands in between"
                if competition
                else "the dataset is not open to this user",
                f"open {RULES}, press Late Submission or I Understand and Accept, and run the same command again"
                if competition
                else f"open https://www.kaggle.com/datasets/{self.slug} in a browser, or give --from PATH",
            )
        if status == 404:
            return missing(label, self.slug, self.available, competition=competition)
        return RemoteError(
            f"Kaggle refuses {label} of {self.slug} ({status})",
            "",
            "try again later, or give --from PATH",
        )


def missing(label: str, slug: str, available: list[str], *, competition: bool) -> RemoteError:
    """The error for a file that Kaggle does not have (any more), with what it has."""
    listed = ", ".join(available[:12]) + (
        f" and {len(available) - 12} more" if len(available) > 12 else ""
    )
    return RemoteError(
        f"{slug} has no {label}; available files: {listed or 'none'}",
        "Kaggle withdrew the pictures from the competition at times"
        if competition
        else "the dataset may be withdrawn",
        f"raytrain download planet --from {'dataset' if competition else 'competition'} --out DIR, "
        "or give an archive or folder that you have with --from PATH",
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Kaggle's client prints help, advice to update itself, and warnings about files."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _signed_in() -> Any:
    """Kaggle's client. Importing it signs in, prints, makes a configuration folder and may end the process."""
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
    value = response.headers.get("Retry-After", "")
    try:
        return max(
            0.0,
            float(value)
            if value.strip().isdigit()
            else parsedate_to_datetime(value).timestamp() - time.time(),
        )
    except ValueError:
        return None


def _web_page(label: str) -> RemoteError:
    return RemoteError(
        f"a web page came in place of {label}",
        "a sign-in page, or the page of a network that asks to log in; nothing of it was kept",
        f"open https://www.kaggle.com in a browser on this network, and run the same command again; or {_LOGIN}",
    )


class _Part:
    """The part of a file that is there: `NAME.partial`, with the identity of the whole in `NAME.partial.json`."""

    def __init__(self, to: Path) -> None:
        self.to = to
        self.path = to.with_name(f"{to.name}.partial")
        self._marker = to.with_name(f"{to.name}.partial.json")

    def length(self) -> int:
        """Bytes that came so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def complete(self) -> bool:
        """Whether every byte is there and only the rename is left to do."""
        return 0 < self.length() == self._known().get("size")

    def finish(self) -> None:
        """Gives the whole file its name."""
        with storage.failures("write", str(self.to)):
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
        ready: Ready,
        tell: Callable[[int], None],
    ) -> None:
        """Gets what is missing in one request.

        Raises:
            Cut: the rest did not come; also requests.RequestException.
        """
        known = self._known()
        start = self.length() if known else 0
        asked = headers | {"Accept-Encoding": "identity"}
        if start:
            asked |= {"Range": f"bytes={start}-", "If-Range": known["validator"]}
        with requests.get(url, headers=asked, stream=True, timeout=TIMEOUT_S) as response:
            if response.status_code == 416:
                self._begin({})
                raise Cut("what was there does not fit the file any more")
            response.raise_for_status()
            start, whole = self._agreed(response, start, size)
            ready(start, whole)
            with self.path.open("ab") as file:
                for chunk in response.iter_content(_CHUNK):
                    with storage.failures("write", str(self.path)):
                        file.write(chunk)
                        file.flush()
                    tell(len(chunk))
        if whole and self.length() != whole:
            raise Cut(f"{size_text(self.length())} of {size_text(whole)} came")

    def _agreed(self, response: requests.Response, start: int, size: int) -> tuple[int, int]:
        """Where the answer begins and the size of the whole; anything else than the wanted rest begins anew."""
        if "text/html" in response.headers.get("Content-Type", ""):
            raise _web_page(self.to.name)
        begin, whole = 0, int(response.headers.get("Content-Length", size))
        if response.status_code == 206:
            span, _, total = (
                response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
            )
            begin, whole = (
                int(span.partition("-")[0] or -1),
                int(total) if total.isdigit() else whole + start,
            )
        if size and whole != size:
            raise RemoteError(
                f"Kaggle lists {self.to.name} with {size} bytes and sends {whole}",
                "it is another file than the one that is listed, or not whole",
                "run the same command again later, or give --from PATH",
            )
        if response.status_code == 206 and begin == start:
            return start, whole
        if start:
            logger.info(
                f"{self.to.name}: it has changed at Kaggle since {size_text(start)} came; beginning anew"
            )
        etag = response.headers.get("ETag", "")
        # A weak ETag names a meaning, not bytes.
        validator = (
            response.headers.get("Last-Modified") if not etag or etag.startswith("W/") else etag
        )
        self._begin({"validator": validator, "size": whole} if validator and whole else {})
        if response.status_code == 206:
            raise Cut("another part came than was asked for")
        return 0, whole

    def _begin(self, identity: dict[str, Any]) -> None:
        # Emptied first: the old part never stands beside the new identity.
        with storage.failures("write", str(self.path)):
            self.path.write_bytes(b"")
        storage.write_json(str(self._marker), identity)

    def _known(self) -> dict[str, Any]:
        try:
            known = json.loads(self._marker.read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) and {"validator", "size"} <= set(known) else {}
