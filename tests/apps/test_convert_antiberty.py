"""``didi convert antiberty``: folders of the package become a teacher; the published weights predict antibodies."""

import json

import pytest
import torch

import didi
from didi.apps import convert_antiberty
from didi.apps.convert import run_convert
from didi.errors import UsageError
from didi.models.bert import Bert, BertConfig
from didi.models.bert_layout import BLOCK_MODULES, MODULES, QUERY_KEY_VALUE, SYMBOLS, VOCABULARY
from didi.models.proteins import ALPHABET, RESIDUES

SHAPE = BertConfig(hidden_size=16, num_blocks=2, num_heads=2, length=40, inner_size=64)
# The first of the VH domains of the asset ``vh``.
HEAVY = (
    "QVQLVESGGGLVKPGGSLRLSCAASGFTFSDYYMSWIRQAPGKGLEWVSYISSSSSYTNYADSVKGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCARVKRRGWRRNSL"
    "WFGESTPSDAHRWFDPWGQGTLVTVSS"
)


def public_weights(network):
    """The tensors of a ``Bert`` under the public names."""
    state, back = network.state_dict(), torch.tensor([SYMBOLS.index(number) for number in range(len(VOCABULARY))])
    weights = {
        "bert.embeddings.word_embeddings.weight": state["vocab_embed.embedding"][back],
        "bert.embeddings.position_embeddings.weight": state["position_embed"],
        "bert.embeddings.token_type_embeddings.weight": torch.zeros(2, network.hidden_size),
        "cls.predictions.bias": state["output_layer.bias"][back],
    }
    for kind in ("weight", "bias"):
        weights |= {f"{public}.{kind}": state[f"{name}.{kind}"] for name, public in MODULES.items()}
        for number in range(len(network.blocks)):
            layer, block = f"bert.encoder.layer.{number}.", f"blocks.{number}."
            thirds = zip(QUERY_KEY_VALUE, state[f"{block}attn_qkv.{kind}"].chunk(3), strict=True)
            weights |= {f"{layer}{public}.{kind}": third for public, third in thirds}
            weights |= {
                f"{layer}{public}.{kind}": state[f"{block}{name}.{kind}"] for name, public in BLOCK_MODULES.items()
            }
    return weights


@pytest.fixture(scope="module")
def network(randomise):
    network = randomise(Bert(SHAPE))
    with torch.no_grad():  # symbols that AntiBERTy does not know are its [UNK]
        for values in (network.vocab_embed.embedding, network.output_layer.bias):
            values.copy_(values[[SYMBOLS.index(symbol) for symbol in SYMBOLS]])
    return network


@pytest.fixture
def folder(network, tmp_path):
    """The folders of the package: vocab.txt lies outside that of the weights."""
    inner = tmp_path / "trained_models" / "md"
    inner.mkdir(parents=True)
    torch.save(public_weights(network), inner / "pytorch_model.bin")
    (inner / "config.json").write_text(json.dumps({"model_type": "bert", "num_attention_heads": 2, "vocab_size": 25}))
    (inner.parent / "vocab.txt").write_text("\n".join(VOCABULARY))
    return inner


def converted(source, tmp_path, *flags):
    run_convert(["antiberty", str(source), "--out", str(tmp_path / "bundle"), *flags])
    return didi.load(tmp_path / "bundle")


def test_a_folder_of_the_package_becomes_a_teacher(network, folder, tmp_path):
    bundle = converted(folder, tmp_path)
    assert (bundle.teacher.config, bundle.process.schedule.name) == (network.config, "log-linear")
    tokens = torch.tensor([[0, 5, 6, 32, 2]])
    with torch.no_grad():
        torch.testing.assert_close(bundle.teacher(tokens), network(tokens))
    assert bundle.provenance["layout"] == "antiberty"
    assert bundle.tokenizer.encode("MKT").ids == [20, 15, 11]
    texts = didi.generate(bundle, num_samples=8, nfe=3, length=[5, 9], seed=1).texts
    assert [len(text) for text in texts] == [5, 9] * 4
    assert set("".join(texts)) <= set(RESIDUES)


def test_the_name_antiberty_fetches_the_pinned_asset(folder, tmp_path, monkeypatch):
    fetched = []
    (folder.parent / "AntiBERTy_md_smooth").symlink_to(folder)
    monkeypatch.setattr(convert_antiberty, "fetch", lambda name: fetched.append(name) or folder.parent)
    assert converted("antiberty", tmp_path, "--role", "student").student.length == 40
    assert fetched == ["antiberty"]


def test_another_vocabulary_and_flags_of_other_layouts_are_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="does not read --length, since its positions are learned"):
        converted(folder, tmp_path, "--length", "64")
    with pytest.raises(UsageError, match=r"does not read --num-heads, since config\.json has it"):
        converted(folder, tmp_path, "--num-heads", "0")
    (folder / "vocab.txt").write_text("\n".join(reversed(VOCABULARY)))
    with pytest.raises(UsageError, match=r"the vocabulary of AntiBERTy is \[PAD\] \[UNK\]"):
        converted(folder, tmp_path)


def test_the_vocabulary_of_the_outer_folder_is_read_only_for_the_pinned_asset(folder, tmp_path, monkeypatch):
    (folder.parent / "vocab.txt").write_text("\n".join(reversed(VOCABULARY)))
    assert converted(folder, tmp_path).teacher is not None
    (folder.parent / "AntiBERTy_md_smooth").symlink_to(folder)
    monkeypatch.setattr(convert_antiberty, "fetch", lambda name: folder.parent)
    with pytest.raises(UsageError, match=r"the vocabulary of AntiBERTy is \[PAD\] \[UNK\]"):
        converted("antiberty", tmp_path, "--overwrite")


@pytest.mark.network
@torch.no_grad()
def test_the_published_weights_have_the_logits_of_transformers_and_predict_a_heavy_chain(tmp_path):
    transformers = pytest.importorskip("transformers")
    from didi.data.assets import fetch
    from didi.data.protein_batches import protein_canvas

    network = converted("antiberty", tmp_path).teacher
    model = transformers.BertForMaskedLM.from_pretrained(fetch("antiberty") / "AntiBERTy_md_smooth").eval()
    canvas = protein_canvas([HEAVY, HEAVY[:60]])
    tokens = canvas.tokens.clone()
    tokens[:, 2:60:4] = network.mask_id
    logits = network(tokens, None, canvas.attention_mask)[..., [ALPHABET.index(residue) for residue in RESIDUES]]
    expected = model(torch.tensor(SYMBOLS)[tokens], attention_mask=canvas.is_real.long()).logits[..., 5:]
    assert (logits - expected)[canvas.is_real].abs().max() < 1e-4
    masked = tokens[0] == network.mask_id
    names = [RESIDUES[index] for index in logits[0][masked].argmax(-1).tolist()]
    hits = sum(a == b for a, b in zip(names, HEAVY[1:59:4], strict=True))
    assert hits >= 12  # of 15 masked residues
