"""The node's adapters: its database, files, bus, bucket and hub, each behind a narrow interface."""
