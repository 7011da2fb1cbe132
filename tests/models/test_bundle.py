"""Bundles: saving and loading, roles, model cards, and the Hub."""

import shutil
from dataclasses import replace

import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import load_file

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import Cosine
from didi.errors import DidiError, UsageError
from didi.models.bundle import ROLES, Bundle, load, save

TOKENS = {"a": 0, "b": 1, "[MASK]": 3, "c": 2}


def test_a_saved_bundle_is_loaded_unchanged(bundle, folder):
    loaded = load(folder)
    ids = torch.randint(4, (2, 2), generator=named_generator("ids"))
    for role in ROLES:
        before, after = getattr(bundle, role), getattr(loaded, role)
        assert after.config == before.config
        assert not after.training
        assert all(parameter.requires_grad for parameter in after.parameters())
        for (name, expected), (loaded_name, value) in zip(
            before.state_dict().items(), after.state_dict().items(), strict=True
        ):
            assert name == loaded_name
            assert torch.equal(expected, value)
        inputs = (ids,) if role == "autoregressive" else (ids, torch.ones(2))
        assert torch.equal(before(*inputs), after(*inputs))
    assert loaded.tokenizer.get_vocab() == TOKENS
    assert loaded.process == Absorbing(3, Cosine())
    assert loaded.intended_nfe == 16
    assert loaded.provenance == bundle.provenance
    assert loaded.name == str(folder)


@pytest.mark.parametrize("role", ROLES)
def test_a_bundle_may_have_any_single_role(bundle, tmp_path, role):
    loaded = load(save(Bundle(**{role: getattr(bundle, role)}), tmp_path / "one"))
    assert [name for name in ROLES if getattr(loaded, name) is not None] == [role]
    assert loaded.tokenizer is None
    assert loaded.provenance == {}


def test_stored_parameters_are_in_half_precision_but_not_buffers_and_loaded_networks(bundle, tmp_path):
    folder = save(bundle, tmp_path / "half", dtype=torch.bfloat16)
    stored = load_file(folder / "teacher" / "model.safetensors")
    assert stored["vocab_embed.embedding"].dtype == torch.bfloat16
    assert stored["rotary_emb.inv_freq"].dtype == torch.float32
    loaded = load(folder).teacher
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    expected = bundle.teacher.vocab_embed.embedding.to(torch.bfloat16).float()
    assert torch.equal(loaded.vocab_embed.embedding, expected)


def test_a_bundle_is_readable_by_other_users_and_leaves_no_temporary_files(saved):
    assert saved.stat().st_mode & 0o777 == 0o755
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in saved.rglob("*") if path.is_file())
    assert [path.name for path in saved.parent.iterdir()] == ["bundle"]
    assert sorted(path.name for path in saved.iterdir()) == sorted(
        [*ROLES, "README.md", "bundle.yaml", "tokenizer.json"]
    )


def test_saving_again_replaces_the_whole_bundle(bundle, folder):
    save(Bundle(teacher=bundle.student), folder)
    loaded = load(folder)
    assert loaded.student is None
    assert loaded.discriminator is None
    assert not (folder / "tokenizer.json").exists()
    assert torch.equal(loaded.teacher.vocab_embed.embedding, bundle.student.vocab_embed.embedding)


def test_a_failed_save_keeps_the_old_bundle_and_leaves_no_files(bundle, folder):
    with pytest.raises(yaml.YAMLError):  # the manifest is written last
        save(Bundle(teacher=bundle.student, provenance={"no": object()}), folder)
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    assert torch.equal(load(folder).teacher.vocab_embed.embedding, bundle.teacher.vocab_embed.embedding)


def test_an_empty_bundle_is_refused(tmp_path):
    with pytest.raises(UsageError, match="one network or more"):
        save(Bundle(), tmp_path / "empty")
    assert not list(tmp_path.iterdir())


def test_only_a_bundle_is_replaced(bundle, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(UsageError, match="is something else: choose another folder"):
        save(bundle, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_an_unreachable_hub_is_reported_in_one_line(monkeypatch):
    def unreachable(repository, **options):
        raise ConnectionError(f"no route to {repository}\nwith a long\ntraceback")

    monkeypatch.setattr("didi.hub.is_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(DidiError) as caught:
        load("owner/name")
    assert str(caught.value) == "no folder and no reachable Hub repository 'owner/name': no route to owner/name"


def test_a_hub_repository_is_downloaded_and_loaded(monkeypatch, bundle, folder):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repository, **options: str(folder))
    loaded = load("owner/name")
    assert loaded.name == "owner/name"
    assert torch.equal(loaded.student.vocab_embed.embedding, bundle.student.vocab_embed.embedding)


def test_the_student_is_the_default_role(bundle):
    assert bundle.denoiser() is bundle.student
    assert bundle.denoiser("teacher") is bundle.teacher
    assert Bundle(teacher=bundle.teacher).denoiser() is bundle.teacher


def test_a_missing_role_is_refused_with_the_present_ones(bundle):
    with pytest.raises(UsageError, match=r"has no student \(it holds teacher\)"):
        Bundle(teacher=bundle.teacher).denoiser("student")
    with pytest.raises(UsageError, match=r"has no generator \(it holds discriminator\)"):
        Bundle(discriminator=bundle.discriminator).denoiser()


def test_an_unknown_role_is_refused(bundle, unchecked):
    with pytest.raises(UsageError, match="a role is one of student, teacher, autoregressive; got 'judge'"):
        bundle.denoiser("judge")


def test_a_bundle_moves_all_networks_to_the_device(saved):
    bundle = load(saved)
    assert bundle.to("meta") is bundle
    for role in ROLES:
        assert {parameter.device.type for parameter in getattr(bundle, role).parameters()} == {"meta"}


def test_a_card_states_the_contents_and_the_origin_of_a_bundle(bundle, folder):
    card = (folder / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "didi-instruct"
    assert all(f"| {role} |" in card for role in ROLES)
    assert "Recipe: test." in card
    assert "Moves: the student is trained for 16, the default of `didi generate`." in card
    assert "seed: 7" in card


@pytest.mark.parametrize(
    ("provenance", "expected"), [({"method": "sdtt"}, ", distilled by method `sdtt` |"), ({}, ", distilled |")]
)
def test_a_card_names_the_method_of_the_student(bundle, tmp_path, provenance, expected):
    card = save(replace(bundle, provenance=provenance), tmp_path / "bundle") / "README.md"
    (row,) = [line for line in card.read_text().splitlines() if line.startswith("| student |")]
    assert expected in row


def test_save_pretrained_and_from_pretrained_are_save_and_load(bundle, tmp_path):
    path = bundle.save_pretrained(tmp_path / "bundle")
    loaded = Bundle.from_pretrained(path)
    assert torch.equal(loaded.student.vocab_embed.embedding, bundle.student.vocab_embed.embedding)


def test_a_pushed_bundle_can_be_loaded(monkeypatch, bundle, tmp_path):
    calls = []

    class Hub:
        def __init__(self, token):
            calls.append(("token", token))

        def create_repo(self, repository, **options):
            calls.append((repository, options))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub")
            return f"address of {repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert bundle.push_to_hub("me/mine", is_private=True, token="secret") == "address of me/mine"
    assert calls == [("token", "secret"), ("me/mine", {"private": True, "exist_ok": True})]
    loaded = load(tmp_path / "hub")
    assert torch.equal(loaded.student.vocab_embed.embedding, bundle.student.vocab_embed.embedding)


def test_a_refusal_of_the_hub_is_reported_in_one_line(monkeypatch, bundle):
    def refuse(*_, **__):
        raise PermissionError("401 Unauthorized\nand a second line")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(DidiError, match=r"the Hub did not accept 'me/mine': 401 Unauthorized$"):
        bundle.push_to_hub("me/mine")


def test_the_revision_after_an_at_sign_is_requested_from_the_hub(monkeypatch, folder):
    request = {}

    def fetch(repository, **options):
        request.update(repository=repository, **options)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    load("owner/name@round-7")
    assert (request["repository"], request["revision"]) == ("owner/name", "round-7")
    assert "*" not in "".join(request["allow_patterns"])


def test_a_folder_with_a_bundled_name_is_ambiguous(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(bundle, "exact")
    with pytest.raises(UsageError, match=r"write \./exact for the folder, or bundled:exact$"):
        load("exact")
    assert load("./exact").tokenizer.get_vocab() == TOKENS
    bundled = load("bundled:exact")
    assert bundled.tokenizer is None or bundled.tokenizer.get_vocab() != TOKENS
    (tmp_path / "markov").mkdir()  # not a bundle, so the name is not ambiguous
    assert load("markov").name == "markov"
    with pytest.raises(UsageError, match="a model is a bundled name"):
        load("bundled:nothing")
