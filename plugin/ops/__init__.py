"""A tritonserver process and the guard before its ports: found, started, watched, stopped."""
