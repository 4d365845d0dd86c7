"""The exchange as pure state machines: no I/O, no clock. See ``docs/protocol.md``."""
