"""Text as text: encoding in which the name of a special token has no meaning."""

from tokenizers import Tokenizer


def plain_encoder(tokenizer: Tokenizer) -> Tokenizer:
    """A copy of a tokenizer that encodes a literal ``[MASK]`` or ``<|endoftext|>`` as ordinary text.

    It neither pads nor truncates.
    """
    reader = Tokenizer.from_str(tokenizer.to_str())  # a copy: the settings below are state
    reader.encode_special_tokens = True
    reader.no_padding()
    reader.no_truncation()
    return reader
