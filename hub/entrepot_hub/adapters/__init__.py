"""The hub's adapters: its database, bus and bucket, each behind a narrow interface."""
