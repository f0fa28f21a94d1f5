"""How readable the code is, in numbers: `python tests/readability/readability.py [FOLDER or FILE ...]`.

Prints one row a file and the totals beside their limits; the exit code is 1 where a limit is passed. Without arguments it
reads the package. `tests/test_project.py` holds the totals of the package to the same limits.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# Comments for tools say nothing to a reader.
FOR_TOOLS = ("# fmt:", "# noqa", "# type:")
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}

MOST_NODES_PER_LINE = 9.0
MOST_CONDITIONALS_PER_1000 = 15.0
LEAST_COMMENTS_PER_100 = 4.0
MOST_UNFORMATTED = 10
MOST_METHODS = 15
MOST_FUNCTION_LINES = 60
MOST_PARAMETERS = 7


@dataclass
class Numbers:
    """Counts of some code. Lines are code lines: docstrings, comments and blank lines do not count."""

    lines: int = 0
    nodes: int = 0
    conditionals: int = 0
    comments: int = 0
    unformatted: int = 0
    flaws: list[str] = field(default_factory=list)

    def add(self, other: Numbers) -> None:
        """Takes in the numbers of another file."""
        self.lines += other.lines
        self.nodes += other.nodes
        self.conditionals += other.conditionals
        self.comments += other.comments
        self.unformatted += other.unformatted
        self.flaws += other.flaws

    @property
    def nodes_per_line(self) -> float:
        """Syntax-tree nodes for each code line, those of docstrings left out."""
        return self.nodes / max(1, self.lines)

    @property
    def conditionals_per_1000(self) -> float:
        """Conditional expressions (`a if b else c`) for 1,000 code lines."""
        return 1000 * self.conditionals / max(1, self.lines)

    @property
    def comments_per_100(self) -> float:
        """Comments for a reader for 100 code lines."""
        return 100 * self.comments / max(1, self.lines)

    def row(self, name: str) -> str:
        """The numbers as a line of the table."""
        return (
            f"{name:44} {self.lines:6} {self.nodes_per_line:6.2f} {self.conditionals_per_1000:7.1f}"
            f" {self.comments_per_100:7.1f} {self.unformatted:5} {len(self.flaws):6}"
        )

    def failures(self) -> list[str]:
        """What passes a limit, a sentence each."""
        found = list(self.flaws)
        if self.nodes_per_line > MOST_NODES_PER_LINE:
            found.append(f"{self.nodes_per_line:.2f} nodes a line, at most {MOST_NODES_PER_LINE}")
        if self.conditionals_per_1000 > MOST_CONDITIONALS_PER_1000:
            found.append(
                f"{self.conditionals_per_1000:.1f} conditional expressions for 1,000 lines, "
                f"at most {MOST_CONDITIONALS_PER_1000}"
            )
        if self.comments_per_100 < LEAST_COMMENTS_PER_100:
            found.append(
                f"{self.comments_per_100:.1f} comments for 100 lines, at least {LEAST_COMMENTS_PER_100}"
            )
        if self.unformatted > MOST_UNFORMATTED:
            found.append(f"{self.unformatted} `fmt: skip`, at most {MOST_UNFORMATTED}")
        return found


def numbers_of(path: Path) -> Numbers:
    """The numbers of one file."""
    source = path.read_text()
    tree = ast.parse(source)
    docstrings = _docstrings(tree)
    lines, comments, unformatted = _lines_and_comments(source)
    for node in docstrings:
        lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    nodes = list(ast.walk(tree))
    return Numbers(
        lines=len(lines),
        nodes=len(nodes) - 2 * len(docstrings),  # a docstring is an expression and its constant
        conditionals=sum(isinstance(node, ast.IfExp) for node in nodes),
        comments=comments,
        unformatted=unformatted,
        flaws=[f"{path.name}: {flaw}" for flaw in _flaws(nodes)],
    )


def _docstrings(tree: ast.Module) -> list[ast.Expr]:
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            assert isinstance(first, ast.Expr)
            found.append(first)
    return found


def _lines_and_comments(source: str) -> tuple[set[int], int, int]:
    """Numbers of the lines with code, and how many comments are for a reader and for the formatter."""
    lines: set[int] = set()
    comments, unformatted = 0, 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments += not token.string.startswith(FOR_TOOLS)
            unformatted += token.string.startswith("# fmt: ")
        elif token.type not in NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return lines, comments, unformatted


def _flaws(nodes: list[ast.AST]) -> list[str]:
    found = []
    for node in nodes:
        if isinstance(node, COMPREHENSIONS) and _holds_another(node):
            found.append(f"line {node.lineno}: a comprehension inside another")
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, FUNCTIONS)]
            if len(methods) > MOST_METHODS:
                found.append(f"class {node.name} has {len(methods)} methods")
        if isinstance(node, FUNCTIONS):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MOST_FUNCTION_LINES:
                found.append(f"{node.name} has {length} lines")
            if _parameters(node) > MOST_PARAMETERS:
                found.append(f"{node.name} has {_parameters(node)} parameters")
    return found


def _holds_another(node: ast.AST) -> bool:
    return any(isinstance(inner, COMPREHENSIONS) for inner in ast.walk(node) if inner is not node)


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many values a caller gives: `self` and `cls` are none of them."""
    names = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in names)


def files_of(paths: list[Path]) -> list[Path]:
    """The Python files in folders, and files themselves, in order."""
    found: list[Path] = []
    for path in paths:
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return found


def main(words: list[str]) -> int:
    """Prints the table. Returns the exit code."""
    paths = [Path(word) for word in words] or [ROOT / "raytrain"]
    total = Numbers()
    print(
        f"{'file':44} {'lines':>6} {'nodes':>6} {'cond.':>7} {'comm.':>7} {'skip':>5} {'flaws':>6}"
    )
    for path in files_of(paths):
        numbers = numbers_of(path)
        total.add(numbers)
        print(numbers.row(str(path.resolve().relative_to(ROOT))))
    print(total.row("together"))
    failures = total.failures()
    for failure in failures:
        print(f"  {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
