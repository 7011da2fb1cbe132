"""Serving: shared network passes, and the HTTP application over them."""
