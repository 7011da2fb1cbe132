"""Corpora, from files and package registries, and their conversion to rows of tokens."""
