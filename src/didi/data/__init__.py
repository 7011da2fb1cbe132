"""From corpora and package registries to rows of tokens."""
