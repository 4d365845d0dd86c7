"""entrepot_hub: the hub, which knows channels, rights and grants, and never sees the bytes."""
