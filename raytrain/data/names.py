"""Names of tiles: which are safe to use, and which known name another spelling means. No torch, no ray."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_COMPONENT = 255  # bytes of a file name on Linux
MAX_NAME = 1024
# Characters that show nothing and mean nothing: zero-width space, word joiner, byte order mark, soft hyphen, and the marks
# of writing direction. Joiners (U+200C, U+200D) stay: words of some languages need them.
INVISIBLE = "\u200b\u2060\ufeff\u00ad\u200e\u200f\u202a-\u202e\u2066-\u2069"
_INVISIBLE = re.compile(f"[{INVISIBLE}]")
_EDGES = re.compile(rf"^[\s{INVISIBLE}]+|[\s{INVISIBLE}]+$")
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")


# Folders that systems and programs leave among pictures, in lower case: thumbnails, resource forks, waste baskets.
_JUNK = {
    "__macosx",
    "@eadir",
    "#recycle",
    "@recycle",
    "@tmp",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}
_JUNK_FILES = {"thumbs.db", "desktop.ini"}


def is_junk(path: str) -> bool:
    """Whether a path below a source is hidden, or is what a system or a program left there."""
    parts = path.lower().split("/")
    return parts[-1] in _JUNK_FILES or any(part.startswith(".") or part in _JUNK for part in parts)


def is_listed_junk(path: str) -> bool:
    """Whether a listed path is what a system left, as the resource fork `._x.jpg` of a picture. Hidden folders may be meant."""
    parts = path.lower().split("/")
    return parts[-1].startswith("._") or any(
        part in _JUNK or part == ".ipynb_checkpoints" for part in parts
    )


def trimmed(text: str) -> str:
    """The text without white space and invisible characters at its ends."""
    return text.strip() if text.isascii() else _EDGES.sub("", text)


def without_invisible(text: str) -> str:
    """The text without characters that show nothing and mean nothing, such as a zero-width space."""
    return text if text.isascii() else _INVISIBLE.sub("", text)


def visible(text: str) -> str:
    """The text for a message: what would not be seen is written as `<U+FEFF>`, a byte that is not UTF-8 as `<0xF4>`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def is_utf8(name: str) -> bool:
    """False where a file name or an argument has bytes that are not UTF-8; Python keeps them as surrogates."""
    return not any("\udc80" <= character <= "\udcff" for character in name)


def _shown(character: str) -> str:
    if not is_utf8(character):
        return f"<0x{ord(character) - 0xDC00:02X}>"
    if character.isprintable() or unicodedata.category(character) == "Mn":
        return character
    return f"<U+{ord(character):04X}>"


def why_unsafe(name: str) -> str:
    """Why a name cannot be that of a tile: one reason in words, or an empty string."""
    if not name:
        return "the name is empty"
    if (
        name.isascii() and name.replace("_", "").isalnum()
    ):  # nearly every name: 40,000 of them take no time
        return (
            "" if len(name) <= MAX_COMPONENT else f"the name is longer than {MAX_COMPONENT} bytes"
        )
    odd = next((c for c in name if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")), None)
    if odd is not None:
        what = (
            "bytes that are not UTF-8"
            if unicodedata.category(odd) == "Cs"
            else f"the character U+{ord(odd):04X}"
        )
        return f"the name has {what}"
    if _DRIVE.match(name) or len(name) > MAX_NAME:
        return (
            "the name leads out of the folder"
            if _DRIVE.match(name)
            else f"the name has over {MAX_NAME} characters"
        )
    for part in re.split(r"[/\\]", name):
        if part in ("", ".", ".."):
            return "the name leads out of the folder"
        if part.startswith("."):
            return "the name is that of a hidden file"
        if len(part.encode()) > MAX_COMPONENT:
            return f"a part of the name is longer than {MAX_COMPONENT} bytes"
    return ""


def stem(name: str) -> str:
    """A tile's name without the suffix of a picture, in any case."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def spelling(name: str) -> str:
    """A form that is equal for names that mean the same.

    Unicode form (NFC), invisible characters, `\\` for `/`, `./` in front and the case of a picture's suffix do not count.
    """
    name = (
        unicodedata.normalize("NFC", without_invisible(name)).replace("\\", "/").removeprefix("./")
    )
    base = stem(name)
    return base + name[len(base) :].lower()


def spelling_of_stem(name: str) -> str:
    """`spelling`, without the suffix of a picture."""
    return stem(spelling(name))


class KnownNames:
    """Known names, found by other spellings of them.

    A name without a folder also means the known one of that name that lies in some folder.
    """

    def __init__(self, known: Iterable[str], key: Callable[[str], str] = spelling_of_stem) -> None:
        """Takes the known names, and the function that gives alike names equal keys."""
        self._key = key
        self._whole: dict[str, list[str]] = {}
        self._last: dict[str, list[str]] = {}
        for name in known:
            self._whole.setdefault(key(name), []).append(name)
            if "/" in name:
                self._last.setdefault(key(name.rsplit("/", 1)[1]), []).append(name)

    def find(self, name: str) -> list[str]:
        """The known names that `name` means: none, one, or several that differ in their suffix."""
        inside = self.in_folders(name)
        return self.whole(name) or (inside if len(inside) == 1 else [])

    def whole(self, name: str) -> list[str]:
        """The known names that are `name`, folders included."""
        return self._whole.get(self._key(name), [])

    def in_folders(self, name: str) -> list[str]:
        """The known names that are `name` in some folder; where there are several, it is not clear which is meant."""
        return self._last.get(self._key(name), [])
