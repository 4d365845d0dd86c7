"""The hub's HTTP API for nodes and its socket for the admin."""
