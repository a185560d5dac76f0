"""
Usage as providers report it, read into disjoint counts that add up.

``reading`` chooses the reader of a format. ``counts`` has what all readers share.
"""

from voight_middleware.providers.usage_formats.reading import Reading, read, read_usage, recognise

__all__ = ("Reading", "read", "read_usage", "recognise")
