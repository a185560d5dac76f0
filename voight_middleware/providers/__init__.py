"""Providers: how responses and their usage are read. Pure functions, without an SDK."""
