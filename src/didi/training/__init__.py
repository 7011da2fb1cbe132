"""Trainer, loop, checkpoints and distribution of training runs of all methods."""
