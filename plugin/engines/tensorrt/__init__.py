"""TensorRT and TensorRT-RTX: what is built ahead, what is recorded of it, and what runs it."""
