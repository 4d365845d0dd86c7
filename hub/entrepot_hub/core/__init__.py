"""The pure core of the hub: rights, quota, grants and placement, without I/O and without a clock."""
