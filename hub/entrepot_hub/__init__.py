"""entrepot_hub: the hub, which knows channels, rights and grants, and sees no bytes but those of its folder buckets."""
