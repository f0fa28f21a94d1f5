"""What the program survives, as one table: `python tests/reliability/score.py --quick | --full | --only R1,R5 --out DIR`.

--quick takes two minutes: of each figure the cases that are fast, one kill under Ray among them. --full is all of it,
under an hour on two cores; interrupted, the same command with the same --out goes on after the last whole case. The table
goes to standard output and to DIR/score.md. Exit code 1 where a target is not met; with --quick where a check failed: times
are this machine's. The figures are R1 to R26 of the project's scoreboard.
"""

import argparse
import datetime
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.extend(
    str(Path(__file__).parent / room) for room in (".", "..", "../data", "../training", "../cli")
)

from figures import Figure, Ledger, passed


def main(argv: list[str] | None = None) -> int:
    """Measures and prints the table. Returns the exit code."""
    # Not above: processes that the cases start import this file, and shall not import all that the cases need.
    from modules import FIGURES

    arguments = parsed(argv, FIGURES)
    with tempfile.TemporaryDirectory(prefix="score-") as home:
        out = Path(arguments.out or home).resolve()
        surroundings(Path(home))
        chosen = selected(arguments, FIGURES)
        ledger = Ledger(out)
        rows, good, began = [], True, time.monotonic()
        for number, (figure, cases) in enumerate(chosen, 1):
            outcomes = []
            for i, case in enumerate(cases, 1):
                said(
                    f"[{time.monotonic() - began:5.0f} s] {figure.id} ({number} of {len(chosen)}): {case.name} ({i} of {len(cases)})"
                )
                outcomes.append(ledger.outcome(case))
                for failure in outcomes[-1].failures:
                    said(f"    failed: {failure}")
            rows.append(row(figure, outcomes, len(cases) < len(figure.cases)))
            # The quick cases, which every change runs, do not fail by a time.
            good &= passed(outcomes) and (arguments.quick or rows[-1][1])
        text = table(rows, time.monotonic() - began)
        print(text)
        (out / "score.md").write_text(text)
    return 0 if good else 1


def parsed(argv: list[str] | None, all_figures: list[Figure]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true")
    how.add_argument("--full", action="store_true")
    parser.add_argument(
        "--only", help="figures, separated by commas; with --quick their fast cases"
    )
    parser.add_argument("--out", help="folder for the table and for going on; needed by --full")
    arguments = parser.parse_args(argv)
    if not (arguments.quick or arguments.full or arguments.only):
        parser.error("one of --quick, --full and --only is needed")
    if arguments.full and arguments.only:
        parser.error("--full is all figures, --only some of them")
    if arguments.full and not arguments.out:
        parser.error("--full takes long: --out DIR keeps what is measured")
    known = {figure.id for figure in all_figures}
    unknown = sorted(set((arguments.only or "").split(",")) - known - {""})
    if unknown:
        parser.error(
            f"{', '.join(unknown)} unknown; there are {', '.join(sorted(known, key=lambda id: int(id[1:])))}"
        )
    return arguments


def selected(arguments: argparse.Namespace, all_figures: list[Figure]) -> list[tuple[Figure, list]]:
    """Figures with their cases."""
    wanted = (arguments.only or "").split(",")
    figures = [figure for figure in all_figures if not arguments.only or figure.id in wanted]
    some = [
        (figure, [case for case in figure.cases if case.quick or not arguments.quick])
        for figure in figures
    ]
    return [(figure, cases) for figure, cases in some if cases]


def surroundings(home: Path) -> None:
    """A home and a cache of its own for all that is started from here, and Ray without tokens."""
    from raytrain.distributed.environment import QUIET

    for name in [
        name for name in os.environ if name.startswith("RAYTRAIN_") or name == "RAY_ADDRESS"
    ]:
        del os.environ[name]
    os.environ.update(
        HOME=str(home),
        RAYTRAIN_CACHE=str(home / "cache"),
        RAY_AUTH_MODE="disabled",
        **QUIET,
    )


def row(figure: Figure, outcomes: list, partly: bool) -> tuple[str, bool]:
    """A row of the table, and whether the target is met."""
    met, seconds = figure.met(outcomes), sum(o.seconds for o in outcomes)
    found = f"{figure.value(outcomes)}{' of the quick cases' if partly else ''}"
    return (
        f"| {figure.id} | {figure.title} | {found} | {figure.target} | {'yes' if met else '**no**'} | {seconds:.0f} s |",
        met,
    )


def table(rows: list[tuple[str, bool]], seconds: float) -> str:
    """The table as Markdown."""
    head = "| | figure | found | target | met | took |\n|---|---|---|---|---|---|"
    last = f"{datetime.date.today()}, {os.cpu_count()} CPUs, {seconds:.0f} s"
    return "\n".join([head, *(line for line, _ in rows), "", last, ""])


def said(line: str) -> None:
    """Progress goes to standard error: the table alone is the result."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
