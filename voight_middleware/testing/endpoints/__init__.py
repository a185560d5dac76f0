"""
What the loopback provider answers: bodies, server-sent events and messages as OpenAI, Anthropic and Google send them.

Source of the shapes: the API references and the types of the openai (3.52) and anthropic (2.11) SDKs, and recorded answers. The
usage is made up from a hash of the request: the same request always costs the same.
"""
