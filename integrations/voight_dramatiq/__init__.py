"""dramatiq."""
