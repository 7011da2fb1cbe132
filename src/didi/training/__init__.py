"""Recipes and loops for teachers and students."""
