"""The node's services: what a peer does, composed from the core and the adapters."""
