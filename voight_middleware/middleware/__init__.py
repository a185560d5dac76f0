"""Where a request or a job enters."""
