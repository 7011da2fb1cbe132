"""Serving: shared network passes, the HTTP application and its page, and replays of sampling as files."""
