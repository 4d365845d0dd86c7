"""One target under atheris, until it finds something or its time is over: see ``scripts/fuzz``.

    python -m tests.fuzz.loop "object header" CORPUS [options of libFuzzer]

Coverage of our own code guides it. Ends with libFuzzer's exit code; what it found lies where -artifact_prefix says.
"""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(include=["entrepot", "entrepot_hub"]):
    from tests.fuzz.table import TARGETS
from tests.fuzz.targets import look


def main() -> None:
    """Never returns."""
    name, *options = sys.argv[1:]
    target = next(target for target in TARGETS if target.name == name)
    # What is imported at the first use is imported now, not counted as slow.
    for sample in target.samples():
        look(target, sample)
    atheris.Setup([sys.argv[0], *options], lambda data: look(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
