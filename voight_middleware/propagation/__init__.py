"""Propagation: tags in the requests to other services and in the messages to workers."""
