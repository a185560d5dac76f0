"""Where a call leaves: through the openai and anthropic SDKs, and by hand."""
