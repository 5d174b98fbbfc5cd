"""Trains the embedded emoji model (not needed to serve it)."""
