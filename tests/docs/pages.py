"""Reads README and the pages under docs/: blocks of code, commands in them, code in sentences, links, sentences.

A command of a page is run by a test (`test_pages_run.py`), unless the page says that it is not. There are two marks, both
comments of the shell, so that readers see them, too:

    raytrain download planet --out tiles    # not run here: needs a Kaggle account
    # not run here: needs a GPU             (of all commands below it in the block)

`python tests/docs/pages.py` lists the links that lead outside, each with its page: no test follows them.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^ *(```+)(.*)$")
NOT_RUN = re.compile(r"#\s*not run here:\s*(?P<why>\S.*)$")
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
BARE_LINK = re.compile(r"https?://[^\s)>`]+[^\s)>`.,;:]")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: name of the file, such as data.md.
        line: number of its first line in the page, the fence, from 1.
        language: what stands behind the opening fence.
        text: what it holds.
    """

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command line of a page.

    Attributes:
        page: name of the file.
        line: number of the line in the page, from 1.
        text: the line as it is typed, continuation lines joined, without a comment.
        not_run: why no test runs it; empty where one does.
    """

    page: str
    line: int
    text: str
    not_run: str = ""

    @property
    def where(self) -> str:
        """Page and line."""
        return f"{self.page}:{self.line}"

    @property
    def words(self) -> list[str]:
        """Its words, up to a pipe or a file that it writes."""
        return words_of(self.text)


def pages() -> list[Path]:
    """README and all pages."""
    return [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def page(name: str) -> Path:
    """The path of a page by its name."""
    return ROOT / name if name == "README.md" else DOCS / name


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found: list[Block] = []
    opened: tuple[int, str, str] | None = None
    inside: list[str] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fence = FENCE.match(line)
        if opened is None:
            if fence:
                opened, inside = (number, fence[1], fence[2].strip()), []
            continue
        if fence and fence[1] == opened[1] and not fence[2].strip():
            found.append(Block(path.name, opened[0], opened[2], "\n".join(inside)))
            opened = None
            continue
        inside.append(line)
    assert opened is None, f"{path.name}: the block of line {opened} has no end"
    return found


def commands(block: Block) -> list[Command]:
    """The command lines of a block in the language of a shell."""
    found: list[Command] = []
    rest = ""
    pending, start = "", 0
    for offset, line in enumerate(block.text.splitlines(), 1):
        mark = NOT_RUN.search(line)
        text = line.split(" #")[0].strip()
        if not text or text.startswith("#"):
            if mark:
                rest = mark["why"]
            continue
        if not pending:
            start = block.line + offset
        if text.endswith("\\"):
            pending += text[:-1]
            continue
        why = mark["why"] if mark else rest
        found.append(Command(block.page, start, pending + text, why))
        pending = ""
    return found


def all_commands() -> list[Command]:
    """The commands of all blocks of all pages."""
    found = []
    for path in pages():
        for block in blocks(path):
            if block.language == "sh":
                found += commands(block)
    return found


def words_of(text: str) -> list[str]:
    """The words of a command line up to a pipe, a redirection or another command; `...` is left out."""
    words = []
    for word in shlex.split(text):
        if word in ("|", ">", "&&", ";"):
            break
        if word != "...":
            words.append(word)
    return words


def prose(path: Path) -> str:
    """A page without its blocks of code and comments."""
    lines: list[str] = []
    fence = ""
    for line in path.read_text().splitlines():
        found = FENCE.match(line)
        if found and not fence:
            fence = found[1]
        elif found and found[1] == fence and not found[2].strip():
            fence = ""
        elif not fence:
            lines.append(line)
    return "\n".join(lines)


def code_in_sentences(path: Path) -> list[str]:
    """What stands between backticks outside blocks, with line breaks as blanks."""
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(path))]


def links(path: Path) -> list[str]:
    """Targets of links and pictures outside blocks."""
    text = prose(path)
    return [found["target"] for found in LINK.finditer(text)]


def outside(path: Path) -> list[str]:
    """Addresses on other machines, in sentences and in blocks."""
    return sorted(set(BARE_LINK.findall(path.read_text())))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as they are where the repository is shown."""
    found = set()
    for line in prose(path).splitlines():
        heading = re.match(r"#+ (.*)", line)
        if heading:
            plain = re.sub(r"[^\w\- ]", "", heading[1].replace("`", "").lower())
            found.add(plain.strip().replace(" ", "-"))
    return found


def sentences(path: Path) -> list[str]:
    """The sentences of paragraphs and lists. Headings, tables and pictures are none; code counts as one word."""
    paragraphs: list[str] = []
    current: list[str] = []
    for line in [*prose(path).splitlines(), ""]:
        text = line.strip()
        begins = re.match(r"(- |\d+\. )", text)
        if not text or begins or text.startswith(("#", "|", "![")):
            if current:
                paragraphs.append(" ".join(current))
            current = []
        if text and not text.startswith(("#", "|", "![")):
            current.append(re.sub(r"^(- |\d+\. )", "", text))
    found: list[str] = []
    for paragraph in paragraphs:
        plain = re.sub(r"`[^`]+`", "CODE", paragraph)
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", plain)
        found += [part for part in re.split(r"(?<=[.!?:])\s+", plain) if part]
    return found


if __name__ == "__main__":
    for path in pages():
        for address in outside(path):
            print(f"{path.name:20} {address}")
