"""Files: CSV, JSON lines, Parquet, FOCUS."""
