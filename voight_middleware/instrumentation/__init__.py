"""A call goes out: the SDKs, HTTP clients and WebSockets that are metered."""
