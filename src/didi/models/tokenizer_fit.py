"""Checks of tokenizers: each token must be a symbol of the network, and [MASK] must be the mask of the network."""

from tokenizers import AddedToken, Tokenizer

from didi.errors import UsageError

MASK = "[MASK]"


def fitted_tokenizer(tokenizer: Tokenizer, *, vocab_size: int, mask_id: int | None, source: str) -> Tokenizer:
    """A tokenizer that fits a network: ``tokenizer``, or a copy to which the missing [MASK] is added.

    Without [MASK], an infilling prompt would be encoded as ordinary text and no position would be filled in. A token
    that is not a symbol of the network would cause an index error.

    Args:
        tokenizer: The tokenizer; it is not changed.
        vocab_size: Number of symbols of the network, the mask included.
        mask_id: Mask of the network; None for uniform-state diffusion, where [MASK] is not a symbol of the network and
            only marks the free positions of a prompt.
        source: Name of the tokenizer in messages.

    Raises:
        UsageError: A token has an id of ``vocab_size`` or more, [MASK] has another id than ``mask_id``, or [MASK] is
            missing and the next free id is not ``mask_id``.
    """
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    symbols = [token for token in vocab if mask_id is not None or token != MASK]
    largest = max(symbols, key=lambda token: vocab[token], default=None)
    if largest is not None and vocab[largest] >= vocab_size:
        raise UsageError(
            f"the tokens of a tokenizer fit into the network's {vocab_size} symbols; {source} has {largest!r} with id "
            f"{vocab[largest]}: use the network's own tokenizer, or none"
        )
    if mask_id is None or vocab.get(MASK) == mask_id:
        return tokenizer
    if MASK not in vocab:
        completed = Tokenizer.from_str(tokenizer.to_str())
        # With lstrip it includes the space before it, as in data.text: "a [MASK]" is two tokens.
        completed.add_special_tokens([AddedToken(MASK, lstrip=True, normalized=False, special=True)])
        if completed.token_to_id(MASK) == mask_id:
            return completed
    other = tokenizer.id_to_token(mask_id)
    if MASK in vocab:
        problem = f"it with id {vocab[MASK]}"
    else:
        problem = f"{other!r} there" if other is not None else f"no {MASK}, and its next free id is another"
    raise UsageError(
        f"{MASK} of a tokenizer has the id of the network's mask, {mask_id}; {source} has {problem}: use the network's "
        "own tokenizer, or none"
    )
