"""Everything that needs a cluster: thin shells around engines, groups of them, placement and health."""
