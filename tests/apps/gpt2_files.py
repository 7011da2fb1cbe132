"""Small random GPT-2 models of ``transformers``, and their files in the formats of the Hub."""

import json

import torch
from safetensors.torch import save_file

from didi.data.text import train_tokenizer

VOCAB, LENGTH, BEGIN = 279, 16, 0
DOCUMENTS = [f"number {i} of a few short documents, which the tokenizer is trained on" for i in range(40)]


def tokenizer():
    """A tokenizer of ``VOCAB`` tokens, of which <|endoftext|> is the first, and of [MASK] after them."""
    return train_tokenizer(DOCUMENTS, VOCAB + 1)


def random_gpt2(seed=0, **settings):
    """A GPT2LMHeadModel with large random weights, so that its predictions are not uniform and mistakes are visible."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"vocab_size": VOCAB, "n_positions": LENGTH, "n_embd": 12, "n_layer": 2, "n_head": 3}
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(**{"bos_token_id": BEGIN, "eos_token_id": BEGIN} | shape | settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def gpt2_folder(folder, model, *, form="safetensors", prefix="transformer.", head=None, masks=False):
    """Write a model to ``folder`` and return it.

    ``form`` is safetensors, bin or shards. ``head`` says whether the head is written, by default if it is not tied to
    the embedding. ``masks`` adds the causal masks that older files have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = model.config.to_dict()
    (folder / "config.json").write_text(json.dumps(settings))
    head = not model.config.tie_word_embeddings if head is None else head
    weights = {
        name.replace("transformer.", prefix): value.detach().clone()
        for name, value in model.state_dict().items()
        if head or name != "lm_head.weight"
    }
    for block in range(model.config.n_layer if masks else 0):
        weights[f"{prefix}h.{block}.attn.bias"] = torch.ones(1, 1, LENGTH, LENGTH).tril()
        weights[f"{prefix}h.{block}.attn.masked_bias"] = torch.tensor(-1e4)
    match form:
        case "safetensors":
            save_file(weights, folder / "model.safetensors")
        case "bin":
            torch.save(weights, folder / "pytorch_model.bin")
        case "shards":
            placed = {}
            for number, names in enumerate((sorted(weights)[::2], sorted(weights)[1::2]), start=1):
                file = f"model-0000{number}-of-00002.safetensors"
                save_file({name: weights[name] for name in names}, folder / file)
                placed |= dict.fromkeys(names, file)
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder
