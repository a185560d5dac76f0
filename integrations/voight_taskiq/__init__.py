"""taskiq."""
