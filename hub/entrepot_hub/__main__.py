"""``python -m entrepot_hub``: the admin's command line."""

from __future__ import annotations

from entrepot_hub.cli.main import main

if __name__ == "__main__":
    main()
