"""Refuses folders of pictures that would become a class although they are probably not labelled.

Where folder names are the labels, `train/3/1.png` has the label 3. A test folder in the same place,
`test/1.png`, would give a class named test. The network would learn it, and every figure would look
right. Imports neither torch nor ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from raytrain.data.names import visible
from raytrain.data.tagged import same_form
from raytrain.errors import DataError

TEST = "test"
SHOWN = 3  # folders in a message


def check_folders(names: Sequence[str], classes: Sequence[str]) -> None:
    """Refuses classes that nobody asked for, unless they are listed.

    These are a folder named test in upper or lower case, and a folder at the top that has pictures
    in it while folders at the top have class folders in them.

    Args:
        names: names of the pictures, with their folders.
        classes: the classes that the user listed.

    Raises:
        DataError: with the folders, the number of their pictures and the ways out.
    """
    pictures = Counter(name.rsplit("/", 1)[0] for name in names)
    shared = _shared_folders(pictures)
    # Of the folders that hold pictures, how many levels below those shared by all they lie.
    levels = {folder: len(folder.split("/")) - shared for folder in pictures}
    is_nested = max(levels.values(), default=1) > 1
    listed = {_key(name) for name in classes}
    doubtful = []
    for folder, level in sorted(levels.items()):
        label = _key(_label(folder))
        is_beside_class_folders = is_nested and level == 1
        if label not in listed and (label == TEST or is_beside_class_folders):
            doubtful.append(folder)
    if doubtful:
        raise _refused(doubtful, pictures, is_at_top=not shared)


def _label(folder: str) -> str:
    return folder.rsplit("/", 1)[-1]


def _key(name: str) -> str:
    """Returns what makes two spellings of a class equal."""
    return same_form(name).casefold()


def _shared_folders(folders: Iterable[str]) -> int:
    """Returns how many folders the paths of all class folders begin with in common."""
    paths = [folder.split("/") for folder in folders]
    shared = 0
    while True:
        beginnings = {tuple(path[: shared + 1]) for path in paths}
        # The last folder of a path is a class, and not one of those around all classes.
        is_class = any(len(path) == shared + 1 for path in paths)
        if len(beginnings) > 1 or is_class:
            return shared
        shared += 1


def _refused(doubtful: Sequence[str], pictures: Counter[str], *, is_at_top: bool) -> DataError:
    shown = []
    for folder in doubtful[:SHOWN]:
        shown.append(f'the folder "{visible(folder)}" with its {pictures[folder]} pictures')
    if len(doubtful) > SHOWN:
        shown.append(f"{len(doubtful) - SHOWN} more folders")
    return DataError(
        f"{', '.join(shown)} would become a class",
        "its pictures are usually not labelled, and the network would learn that they are alike",
        "; or ".join(_ways_out(doubtful, pictures, is_at_top)),
    )


def _ways_out(doubtful: Sequence[str], folders: Iterable[str], is_at_top: bool) -> list[str]:
    """Returns what the user may have meant, and what to do then.

    Args:
        doubtful: the folders that would become classes.
        folders: all folders that hold pictures.
        is_at_top: whether class folders and their parts lie directly in the image folder.
    """
    first = visible(doubtful[0])
    own_class = f"--classes with all classes, if {visible(_label(doubtful[0]))} is one of them"
    if any(folder.startswith(f"{doubtful[0]}/") for folder in folders):
        # As a test folder it would take the class folders in it along.
        return [f"move the pictures that lie in {first} itself to their class folders", own_class]
    ways = [f"--test-folder {first}, whose tiles are predicted and never trained on"]
    tops = {folder.split("/")[0] for folder in folders}
    others = sorted(tops.difference(doubtful))
    # --folders chooses among the folders at the top, and a long list of them helps nobody.
    if is_at_top and 0 < len(others) <= SHOWN:
        flags = " ".join(f"--folders {visible(top)}" for top in others)
        ways.append(f"{flags} to leave it out")
    return [*ways, own_class]
