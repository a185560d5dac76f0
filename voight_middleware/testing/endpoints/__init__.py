"""
The endpoints of the loopback provider: bodies, server-sent events and messages in the formats of
OpenAI, Anthropic and Google.

Sources of the formats: the API references, the types of the openai (3.52) and anthropic (2.11)
SDKs, and recorded responses. The fake usage comes from a hash of the request, so the same request
always costs the same.
"""
