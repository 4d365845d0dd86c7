"""The hub's services: what it decides and keeps, composed from the core and the adapters."""
