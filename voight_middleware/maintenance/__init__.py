"""Changes to a ledger as a whole."""
