"""Which names a run or a stage may have: each becomes the name of a directory.

`wrong_name(name)` says what is wrong with the name of a run, a search or a range test, and
`wrong_stage_name(name)` with that of a stage, whose checkpoint it names. Both are empty for a
name that is allowed.
"""

from __future__ import annotations

import re

# Names that a user cannot give to a run: that of a folder beside the runs, see
# `training/stages.py`, and a word that means something else, such as `--lr auto`.
STAGES = "stages"
RESERVED = (STAGES, "auto")
# Linux allows 255 bytes in a file name; while a file is written, its name gets this suffix.
MOST_BYTES = 255 - len("..01234567.partial")
# The range test of a stage is written into files of the stage's name.
MOST_STAGE_BYTES = MOST_BYTES - len(".json")
# The first five mean something in a path, in RUN:CHECKPOINT or in a URI. Some operating systems
# allow none of the others in a file name.
NOT_IN_NAMES = '/\\:?#%*"<>|'
# How much of a refused name an error message shows, characters.
SHOWN = 60

# Names of checkpoints with a meaning of their own, see `checkpoints/layout.py`.
LAST = "last"
BEST = "best"
STEP = "step-"
# Ends of a checkpoint that is being written, and of the one that it replaces.
PARTIAL = ".partial"
OLD = ".old"
# What --stages takes as numbers of stages.
SELECTION = r"\d+(-\d+)?"


def shown(name: str) -> str:
    """Returns a refused name for a message: cut, and a code for what cannot be printed."""
    text = ""
    for character in name[:SHOWN]:
        if character.isprintable():
            text += character
        else:
            # Such as <U+202E>.
            text += f"<U+{ord(character):04X}>"
    if len(name) > SHOWN:
        text += "..."
    return text


def wrong_name(name: str, most_bytes: int = MOST_BYTES) -> str:
    """Returns what is wrong with a name, to follow it in a message; empty if nothing is.

    Args:
        name: of a new run, search or range test.
        most_bytes: the length that is allowed, bytes of UTF-8.
    """
    # surrogatepass: an argument that is not UTF-8 reaches us with lone surrogates.
    size = len(name.encode("utf-8", "surrogatepass"))
    if not name:
        return "is empty"
    if size > most_bytes:
        return f"has {size} bytes; {most_bytes} are the most"
    if name.strip() != name:
        return "begins or ends with a blank"
    if not name.isprintable():
        return "has a character that cannot be printed"
    if name in (".", ".."):
        return "means another directory"
    if name[0] in "-~":
        return f"begins with {name[0]}"
    if name.casefold() in RESERVED:
        return "is reserved"
    for character in name:
        if character in NOT_IN_NAMES:
            return f"has the character {character}"
    return ""


def wrong_stage_name(name: str) -> str:
    """Returns what is wrong with the name of a stage, to follow it; empty if nothing is."""
    why = wrong_name(name, MOST_STAGE_BYTES)
    if why:
        return why
    # Some file systems do not tell upper from lower case.
    folded = name.casefold()
    if folded in (LAST, BEST) or folded.startswith(STEP):
        return "is that of another checkpoint: last, best and step-* are reserved"
    if folded.endswith((PARTIAL, OLD)):
        return "ends like a checkpoint that is being replaced"
    if re.fullmatch(SELECTION, name):
        return "looks like numbers of stages, as --stages takes them"
    return ""
