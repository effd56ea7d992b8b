"""Measurements: never tests, always ratios inside one run."""
