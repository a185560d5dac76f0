"""The tag context: the tags and the request scope that apply to a call."""
