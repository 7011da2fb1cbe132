"""Losses as pure functions of tensors; one file for each method."""
