"""Evaluation of protein sequences: controls, measures of sequences alone, and judges."""
