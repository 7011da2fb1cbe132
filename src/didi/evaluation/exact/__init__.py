"""Exact distributions of samplers over short sequences of few symbols, and their divergences from the data."""
