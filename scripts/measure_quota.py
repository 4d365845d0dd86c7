"""What ``scripts/measure-quota`` runs: see there."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.servers.nodes import MIB, Site
from tests.servers.quota import through

from entrepot.core.units import parse_size


def main() -> int:
    """Measure, print, and say by the exit code whether quota, uploads and content were right."""
    parser = argparse.ArgumentParser(prog="scripts/measure-quota")
    parser.add_argument("--quota", default="256M", help="the channel's quota")
    parser.add_argument("--size", default="2G", help="of the file")
    parser.add_argument("--readers", type=int, default=3)
    parser.add_argument("--apart", type=float, default=0.1, help="share of the file between two readers' starts")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    quota, size = parse_size(asked.quota), parse_size(asked.size)
    folder = Path(tempfile.mkdtemp(prefix="entrepot-quota-"))
    try:
        site = Site(folder, folder / "h")
        try:
            site.start(quota=quota, miniblock=MIB, object=4 * MIB)
            starts = [number * asked.apart for number in range(asked.readers)]
            flow = through(site, quota=quota, size=size, readers=asked.readers, starts=starts)
        finally:
            for machine in site.machines:
                machine.close()
            site.hub.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    right = flow.stored_most <= quota and all(flow.verified)
    print(json.dumps(flow.document() | {"right": right}, indent=2) if asked.json else flow)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
