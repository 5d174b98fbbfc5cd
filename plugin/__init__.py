"""Serves diffusers pipelines on Triton Inference Server with a TaylorSeer cache per request."""
