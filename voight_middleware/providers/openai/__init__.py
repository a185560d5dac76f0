"""Parsers of responses of OpenAI and compatible servers."""
