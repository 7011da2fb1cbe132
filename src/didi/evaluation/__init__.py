"""Judges, entropies, intervals, tables and figures."""
