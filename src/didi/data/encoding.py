"""Encoding of text in which names of special tokens are ordinary text."""

from tokenizers import Tokenizer


def plain_encoder(tokenizer: Tokenizer) -> Tokenizer:
    """A copy of a tokenizer that encodes a literal ``[MASK]`` or ``<|endoftext|>`` as ordinary text.

    It neither pads nor truncates.
    """
    copied = Tokenizer.from_str(tokenizer.to_str())  # the settings below would change the original
    copied.encode_special_tokens = True
    copied.no_padding()
    copied.no_truncation()
    return copied
