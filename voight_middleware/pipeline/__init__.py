"""On the way to the ledger: meter, journal, ingest."""
