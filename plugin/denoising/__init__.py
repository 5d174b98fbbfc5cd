"""One request, from its fields to pixels."""
