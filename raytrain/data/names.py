"""Names of tiles: which are safe to use, and which known name another spelling refers to.

A tile's name is the path of its file below the source folder, with `/` between folders. The
suffix is usually left out. Imports neither torch nor ray.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_COMPONENT = 255  # bytes of one file or folder name on Linux (NAME_MAX)
MAX_NAME = 1024  # characters of a whole name, folders included
# Characters that show nothing and mean nothing: zero-width space, word joiner, byte order mark,
# soft hyphen, and the marks of writing direction. The joiners U+200C and U+200D are not among
# them, because words of some languages need them.
INVISIBLE = "\u200b\u2060\ufeff\u00ad\u200e\u200f\u202a-\u202e\u2066-\u2069"
_INVISIBLE = re.compile(f"[{INVISIBLE}]")
_EDGES = re.compile(rf"^[\s{INVISIBLE}]+|[\s{INVISIBLE}]+$")
# Names that are safe at first sight, as a regular expression for all of a name.
ORDINARY = f"[A-Za-z0-9_]{{1,{MAX_COMPONENT}}}"
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")
# Unicode categories that no name may have: control characters, surrogates (bytes that are not
# UTF-8), line separators and paragraph separators.
_BAD_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")

# Folders that systems and programs leave among pictures: thumbnails, resource forks, trash.
# In lower case, because Windows and macOS ignore the case of names.
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
    """Tells whether a path below a source is hidden, or was left there by a system or a program."""
    parts = path.lower().split("/")
    if parts[-1] in _JUNK_FILES:
        return True
    return any(part.startswith(".") or part in _JUNK for part in parts)


def is_listed_junk(path: str) -> bool:
    """Tells whether a path in a user's list was left there by a system, such as `._x.jpg`.

    Other hidden folders are accepted: a user who lists them probably means them.
    """
    parts = path.lower().split("/")
    if parts[-1].startswith("._"):
        return True
    return any(part in _JUNK or part == ".ipynb_checkpoints" for part in parts)


def trimmed(text: str) -> str:
    """Removes white space and invisible characters at both ends."""
    if text.isascii():  # a fast path: nearly all cells are ASCII
        return text.strip()
    return _EDGES.sub("", text)


def without_invisible(text: str) -> str:
    """Removes all characters that show nothing and mean nothing, such as a zero-width space."""
    if text.isascii():
        return text
    return _INVISIBLE.sub("", text)


def visible(text: str) -> str:
    """Makes a text printable in a message.

    Characters that cannot be seen become `<U+FEFF>`, bytes that are not UTF-8 become `<0xF4>`.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def is_utf8(name: str) -> bool:
    """Tells whether a file name or an argument was valid UTF-8.

    Python keeps each byte that is not UTF-8 as a surrogate U+DC80 to U+DCFF (PEP 383).
    """
    return not any("\udc80" <= character <= "\udcff" for character in name)


def _shown(character: str) -> str:
    if not is_utf8(character):
        return f"<0x{ord(character) - 0xDC00:02X}>"
    # Mn: combining marks, as in decomposed accents. Alone they count as not printable.
    if character.isprintable() or unicodedata.category(character) == "Mn":
        return character
    return f"<U+{ord(character):04X}>"


def why_unsafe(name: str) -> str:
    """Explains why a name cannot be the name of a tile.

    The words are stored in quarantine.jsonl.

    Returns:
        One reason, or an empty string for a safe name.
    """
    if not name:
        return "the name is empty"
    # A fast path for nearly every name, so that checking 40,000 of them takes no time.
    if name.isascii() and name.replace("_", "").isalnum():
        if len(name) <= MAX_COMPONENT:
            return ""
        return f"the name is longer than {MAX_COMPONENT} bytes"
    for character in name:
        category = unicodedata.category(character)
        if category == "Cs":
            return "the name has bytes that are not UTF-8"
        if category in _BAD_CATEGORIES:
            return f"the name has the character U+{ord(character):04X}"
    if _DRIVE.match(name):
        return "the name leads out of the folder"
    if len(name) > MAX_NAME:
        return f"the name has over {MAX_NAME} characters"
    reasons = (_why_part_is_unsafe(part) for part in re.split(r"[/\\]", name))
    return next((reason for reason in reasons if reason), "")


def _why_part_is_unsafe(part: str) -> str:
    # An empty part is a leading `/`, which makes the path absolute, or a doubled one.
    if part in ("", ".", ".."):
        return "the name leads out of the folder"
    if part.startswith("."):
        return "the name is that of a hidden file"
    if len(part.encode()) > MAX_COMPONENT:
        return f"a part of the name is longer than {MAX_COMPONENT} bytes"
    return ""


def tile_names(files: Sequence[str]) -> list[str]:
    """Removes the suffix of each file name, except where two pictures would get the same name."""
    stems = [file.rsplit(".", 1)[0] for file in files]
    count = Counter(stems)
    names = []
    for file, base in zip(files, stems, strict=True):
        if count[base] == 1:
            names.append(base)
        else:
            names.append(file)
    return names


def stem(name: str) -> str:
    """Removes the suffix of a picture, in upper or lower case. Other suffixes stay."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def spelling(name: str) -> str:
    """Returns a normal form that is equal for two names that mean the same.

    It ignores the Unicode form (NFC), invisible characters, `\\` for `/`, a leading `./` and the
    case of a picture's suffix.
    """
    name = unicodedata.normalize("NFC", without_invisible(name))
    name = name.replace("\\", "/").removeprefix("./")
    base = stem(name)
    return base + name[len(base) :].lower()


def spelling_of_stem(name: str) -> str:
    """Returns `spelling` without the suffix of a picture."""
    return stem(spelling(name))


class KnownNames:
    """Known names that can be looked up by other spellings of them.

    A name without a folder also finds a known name inside a folder, if only one folder has it.
    """

    def __init__(self, known: Iterable[str], key: Callable[[str], str] = spelling_of_stem) -> None:
        """Builds the lookup tables.

        Args:
            known: the names to find.
            key: maps names that mean the same to equal keys.
        """
        self._key = key
        # Known names by the key of the whole name, and by the key of its last component alone.
        self._whole: dict[str, list[str]] = {}
        self._last: dict[str, list[str]] = {}
        for name in known:
            self._whole.setdefault(key(name), []).append(name)
            if "/" in name:
                last = name.rsplit("/", 1)[1]
                self._last.setdefault(key(last), []).append(name)

    def find(self, name: str) -> list[str]:
        """Returns the known names that `name` means; several of them differ only in suffix."""
        whole = self.whole(name)
        if whole:
            return whole
        inside = self.in_folders(name)
        # The same name in two folders may be two tiles, so it means neither.
        if len(inside) == 1:
            return inside
        return []

    def whole(self, name: str) -> list[str]:
        """Returns the known names that equal `name`, folders included."""
        return self._whole.get(self._key(name), [])

    def in_folders(self, name: str) -> list[str]:
        """Returns the known names inside any folder whose last component is `name`.

        Several results mean that the name is ambiguous.
        """
        return self._last.get(self._key(name), [])
