"""Samplers: generators of moves from all masks to text."""
