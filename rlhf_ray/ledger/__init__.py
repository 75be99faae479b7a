"""The ledger: every worker-second of a run stands in exactly one account."""
