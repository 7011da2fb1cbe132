"""Changed weights are refused; bundles without digests are read."""

import hashlib
import shutil
from importlib import resources
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from didi.errors import DidiError, UsageError
from didi.models.bundle import ROLES, Bundle, bundled_names, digest, load, save

BUNDLES = Path(str(resources.files("didi"))) / "bundles"


def provenance_of(folder):
    return yaml.safe_load((folder / "bundle.yaml").read_text())["provenance"]


def edit_provenance(folder, change):
    file = folder / "bundle.yaml"
    manifest = yaml.safe_load(file.read_text())
    change(manifest["provenance"])
    file.write_text(yaml.safe_dump(manifest))


def flip_last_bit(file):
    """Flip the last bit of the last weight; the file stays a valid safetensors file."""
    content = bytearray(file.read_bytes())
    content[-4] ^= 1
    file.write_bytes(content)


def test_saving_records_the_digest_of_every_file_of_weights(folder):
    files = {role: folder / role / "model.safetensors" for role in ROLES}
    expected = {role: hashlib.sha256(file.read_bytes()).hexdigest() for role, file in files.items()}
    assert provenance_of(folder)["weights_sha256"] == expected


@pytest.mark.parametrize("role", ROLES)
def test_a_flipped_bit_is_detected(folder, role):
    file = folder / role / "model.safetensors"
    flip_last_bit(file)
    with pytest.raises(DidiError, match=rf"{file} has SHA-256 .* the file is damaged or was changed: ") as caught:
        load(folder)
    assert not isinstance(caught.value, UsageError)
    assert "\n" not in str(caught.value)


def test_a_bundle_without_digests_is_read_and_saving_adds_them(folder, tmp_path):
    edit_provenance(folder, lambda provenance: provenance.pop("weights_sha256"))
    flip_last_bit(folder / "student" / "model.safetensors")
    assert "weights_sha256" in provenance_of(save(load(folder), tmp_path / "again"))


def test_saving_changed_weights_records_their_digest(folder, tmp_path):
    bundle = load(folder)
    with torch.no_grad():
        bundle.student.vocab_embed.embedding.add_(1)
    bundle.provenance["weights_sha256"] = provenance_of(folder)["weights_sha256"]
    again = save(Bundle(student=bundle.student, provenance=bundle.provenance), tmp_path / "again")
    assert torch.equal(load(again).student.vocab_embed.embedding, bundle.student.vocab_embed.embedding)
    assert list(provenance_of(again)["weights_sha256"]) == ["student"]


@pytest.mark.parametrize("value", ["abc", {"student": "abc"}, {"student": 7}, [1]])
def test_a_malformed_digest_is_refused_in_one_line(folder, value):
    edit_provenance(folder, lambda provenance: provenance.update(weights_sha256=value))
    with pytest.raises(
        UsageError, match=r"weights_sha256 in .* is a mapping of roles to 64 hexadecimal digits"
    ) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", bundled_names())
def test_every_bundled_model_has_the_digests_of_its_weights(name):
    files = {file.parent.name: file for file in (BUNDLES / name).glob("*/model.safetensors")}
    expected = {role: hashlib.sha256(file.read_bytes()).hexdigest() for role, file in files.items()}
    assert provenance_of(BUNDLES / name)["weights_sha256"] == expected


def test_the_digest_of_a_bundle_depends_on_its_content_not_on_its_path(folder, tmp_path):
    before = digest(folder)
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    edit_provenance(moved, lambda provenance: provenance.update(seed=8))
    assert digest(moved) == before
    weights = load_file(moved / "teacher" / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, moved / "teacher" / "model.safetensors")
    assert digest(moved) != before


@pytest.mark.parametrize("name", ["student/config.json", "tokenizer.json"])
def test_the_digest_of_a_bundle_covers_settings_and_tokenizer(folder, name):
    before = digest(folder)
    (folder / name).write_text((folder / name).read_text() + "\n")
    assert digest(folder) != before


def test_the_digest_of_a_bundle_covers_provenance_entries_guidance_and_initial_state(folder):
    digests = {digest(folder)}
    for change in ({"block_layout": "bos-eos"}, {"corpus": "news"}):
        edit_provenance(folder, lambda provenance, change=change: provenance.update(change))
        digests.add(digest(folder))
    file = folder / "bundle.yaml"
    file.write_text(file.read_text() + "guidance: {num_candidates: 7}\n")
    digests.add(digest(folder))
    for ratio in (0.3, 0.5):
        file.write_text(file.read_text().partition("initial_state")[0] + f"initial_state: {{mask_ratio: {ratio}}}\n")
        digests.add(digest(folder))
    assert len(digests) == 6


def test_damage_is_reported_before_other_errors_of_the_weights(folder):
    file = folder / "student" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DidiError, match="is damaged or was changed"):
        load(folder)


def test_the_digest_of_a_bundle_covers_its_process(folder):
    before = digest(folder)
    text = (folder / "bundle.yaml").read_text()
    (folder / "bundle.yaml").write_text(text.replace("schedule: cosine", "schedule: log-linear"))
    assert digest(folder) != before
