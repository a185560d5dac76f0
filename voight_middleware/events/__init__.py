"""Calls as events for Voight."""
