"""Reports: one module per question. They read the ledger, and nothing else."""
