"""How long a holder rests that fails again and again."""

from __future__ import annotations

from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.lock import SchemaLock
from entrepot_hub.core.round import Round

SETTINGS = ExchangeSettings()


def test_a_holder_may_fail_for_ever() -> None:
    """However often the only holder failed, it is asked again after a bounded rest."""
    found = Round(SETTINGS, SchemaLock("demo"), None, 0.0)
    now = 0.0
    for _ in range(1100):
        found.failed("node", now)
        rest = found.rested.get("node", now) - now
        assert rest <= SETTINGS.exclusion / 8
        now += rest + 1.0
