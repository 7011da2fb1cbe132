"""Proteins as token sequences: the tokenizer of ESM-2, whose tokens are residues."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from didi.models.esm2 import ALPHABET, MASK_ID
from didi.models.tokenizer_fit import MASK

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
"""The 20 standard amino acids."""


def protein_tokenizer() -> Tokenizer:
    """The vocabulary of ESM-2 and DPLM, one token a letter, with ``[MASK]`` in place of ``<mask>``.

    It adds neither the begin nor the end symbol, which a ``Canvas`` has. Decoding leaves the special symbols out.
    """
    vocab = {name: number for number, name in enumerate(ALPHABET)}
    vocab[MASK] = vocab.pop(ALPHABET[MASK_ID])
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=""))  # none: another letter is an error
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.add_special_tokens([AddedToken(MASK, normalized=False, special=True)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex("<.+>"), ""), decoders.Fuse()])
    return tokenizer


def is_protein_tokenizer(tokenizer: Tokenizer | None) -> bool:
    """Whether the tokens are residues: each standard one is a token, and no token is a word."""
    if tokenizer is None:
        return False
    vocab = tokenizer.get_vocab()
    return all(one in vocab for one in RESIDUES) and not any(name.isalpha() and len(name) > 1 for name in vocab)
