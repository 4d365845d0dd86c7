"""The pure core of entrepot: identifiers, formats, messages and decisions; no I/O and no clock."""
