"""One engine call shared by several processes, each with a device of its own."""
