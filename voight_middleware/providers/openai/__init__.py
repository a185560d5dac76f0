"""How responses of OpenAI and compatible servers are read."""
