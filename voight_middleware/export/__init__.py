"""Exports: calls on their way to other systems."""
