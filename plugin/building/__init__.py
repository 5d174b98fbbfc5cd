"""What is made ahead of serving: engines, calibration, tuned presets."""
