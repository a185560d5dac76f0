"""The data of a call."""
