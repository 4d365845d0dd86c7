"""Rows that the suites told, as the tables of docs/reliability.md. See ``scripts/reliability``."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"


@dataclass(frozen=True)
class Table:
    """Its columns, of which the first ``keys`` name a row, the commands that tell its rows, and a shape of its own."""

    columns: tuple[str, ...]
    keys: int
    commands: tuple[tuple[str, ...], ...]
    shape: Callable[[Sequence[Mapping[str, object]]], str] | None = None


#: Points of a transfer in their order.
POINTS = (
    "before the want", "at the seek", "at the grant", "in an upload", "between upload and done", "in a download",
    "at the last object",
)  # fmt: skip


def main() -> int:
    """The exit code: 1 if a suite failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--fuzz", type=int, default=60)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], metavar="TABLE")
    given = parser.parse_args()
    wanted = given.tables or list(TABLES)
    failed: list[str] = []
    if given.rows is not None:
        rows = read(given.rows)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows"
            commands = dict.fromkeys(command for name in wanted for command in TABLES[name].commands)
            for command in commands:
                words = [word.format(seeds=given.seeds, fuzz=given.fuzz) for word in command]
                print("==", *words, file=sys.stderr)
                if subprocess.run([*words, "--report", str(path)], cwd=ROOT, check=False).returncode:
                    failed.append(" ".join(words))
            rows = read(path) if path.exists() else []
    page = PAGE.read_text(encoding="utf-8")
    for name in wanted:
        own = {tuple(row[key] for key in TABLES[name].columns[: TABLES[name].keys]): row for row in rows_of(name, rows)}
        if not own:
            continue
        text = render(TABLES[name], list(own.values()))
        if not given.write:
            print(f"\n{name}\n\n{text}")
        page = replaced(page, name, text)
    if given.write and not failed:  # what a suite says that fails is not to be trusted
        PAGE.write_text(page, encoding="utf-8")
    for words in failed:
        print(f"failed: {words}", file=sys.stderr)
    return 1 if failed else 0


def read(path: Path) -> list[tuple[str, dict[str, object]]]:
    """The rows of a file, each with its table's name; a later one of the same name counts."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        found.append((told["table"], told["columns"]))
    return found


def rows_of(name: str, rows: Sequence[tuple[str, dict[str, object]]]) -> list[dict[str, object]]:
    """The rows of one table. KeyError for one that lacks a column."""
    columns = TABLES[name].columns
    return [{column: columns_of[column] for column in columns} for table, columns_of in rows if table == name]


def matrix(rows: Sequence[Mapping[str, object]]) -> str:
    """Faults × points: seconds of each cell, with a mark where the outcome was another than the usual one."""
    points = list(dict.fromkeys(p for p in POINTS if any(row["point"] == p for row in rows)))
    points += sorted({str(row["point"]) for row in rows} - set(points))
    faults = sorted({str(row["fault"]) for row in rows})
    others = sorted({str(row["outcome"]) for row in rows} - {"completed"})
    cells = {(row["fault"], row["point"]): row for row in rows}
    lines = ["| fault | " + " | ".join(points) + " |", "|---|" + "--:|" * len(points)]
    for fault in faults:
        line = []
        for point in points:
            row = cells.get((fault, point))
            mark = "" if row is None or row["outcome"] == "completed" else f" [{others.index(str(row['outcome'])) + 1}]"
            line.append("" if row is None else f"{cell(row['seconds'])}{mark}")
        lines.append(f"| {fault} | " + " | ".join(line) + " |")
    lines += ["", "A number alone: the get completed, so many seconds after the fault was mended. Else:", ""]
    lines += [f"{number}. {outcome}" for number, outcome in enumerate(others, 1)]
    return "\n".join(lines)


def summary(rows: Sequence[Mapping[str, object]]) -> str:
    """Of each fault: at how many points, and the median and longest seconds with its point."""
    lines = ["| fault | points | median s | longest s | at |", "|---|--:|--:|--:|---|"]
    for fault in sorted({str(row["fault"]) for row in rows}):
        own = sorted((float(str(row["seconds"])), str(row["point"])) for row in rows if row["fault"] == fault)
        middle = statistics.median(seconds for seconds, _ in own)
        lines.append(f"| {fault} | {len(own)} | {cell(middle)} | {cell(own[-1][0])} | {own[-1][1]} |")
    return "\n".join(lines)


def render(table: Table, rows: Sequence[Mapping[str, object]]) -> str:
    """The table in Markdown, in the order of its rows' names."""
    if table.shape is not None:
        return table.shape(rows)
    lines = [
        "| " + " | ".join(column.replace("_", " ") for column in table.columns) + " |",
        "|" + "---|" * len(table.columns),
    ]
    ordered = sorted(rows, key=lambda row: [order(row[key]) for key in table.columns[: table.keys]])
    lines += ["| " + " | ".join(cell(row[column]) for column in table.columns) + " |" for row in ordered]
    return "\n".join(lines)


def order(value: object) -> tuple[float, str]:
    """Numbers by size, words by the alphabet."""
    return (float(value), "") if isinstance(value, (int, float)) else (0.0, str(value))


def cell(value: object) -> str:
    """A value in a cell: numbers with three digits that count."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value).replace("|", "\\|").replace("\n", " ")
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.3g}"


def replaced(page: str, name: str, text: str) -> str:
    """The page with this table between its marks. ValueError where the page has no place for it."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"docs/reliability.md has no place for the table {name!r}")
    return pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page)


ATTACKED = (
    "tests/integration/attacks", "tests/integration/exchange/test_floods.py", "tests/integration/web/test_shedding.py",
    "tests/integration/nats/test_limits.py", "tests/unit/hub/test_dispatcher.py", "tests/unit/hub/test_rounds_load.py",
)  # fmt: skip
PYTEST = (sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-p", "no:randomly")
TABLES: Mapping[str, Table] = {
    "attacks": Table(("attack", "defended_by"), 1, ((*PYTEST, *ATTACKED),)),
    "faults": Table(("fault", "point", "outcome", "seconds"), 2, (("scripts/faults",),), matrix),
    "recoveries": Table(
        ("fault", "point", "seconds"),
        2,
        (("scripts/faults",), (*PYTEST, "tests/integration/test_disposable.py")),
        summary,
    ),
    "kills": Table(("store", "points", "outcome"), 1, (("scripts/faults",),)),
    "fuzz": Table(("decoder", "inputs", "outcome"), 1, (("scripts/fuzz", "--all", "--seconds", "{fuzz}"),)),
    "seeds": Table(("scenario", "seeds", "steps", "outcome"), 1, (("scripts/sim", "--seeds", "{seeds}"),)),
    "mutations": Table(("mutation", "seeds", "caught_by"), 1, (("scripts/mutate",),)),
    "scale": Table(
        ("nodes", "objects", "messages_per_object", "hub_ms_per_object"),
        2,
        (("scripts/sim", "--scale", "10,100,1000"),),
    ),
}


if __name__ == "__main__":
    sys.exit(main())
