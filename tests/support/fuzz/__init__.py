"""Requests that nobody would write, for each way into a server."""
