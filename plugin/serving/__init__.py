"""Many requests on one model, without Triton: what they cost, which run, which wait."""
