import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import Cosine
from didi.errors import DidiError, UsageError
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import ROLES, Bundle, bundled_names, load, save

ABSENT = "absent"
PROCESS = {"name": "absorbing", "mask_id": 3, "schedule": "cosine"}
TOKENS = {"a": 0, "b": 1, "[MASK]": 3, "c": 2}


@pytest.fixture(scope="module")
def bundle(make_dit, make_discriminator):
    teacher = make_dit(seed=1)
    return Bundle(
        student=make_dit(seed=2, is_time_conditioned=True),
        teacher=teacher,
        discriminator=make_discriminator(teacher, output="sequence"),
        autoregressive=AutoregressiveLM(
            AutoregressiveConfig(
                vocab_size=teacher.vocab_size,
                mask_id=teacher.mask_id,
                length=4,
                hidden_size=8,
                num_blocks=1,
                num_heads=2,
            )
        ),
        tokenizer=Tokenizer(models.WordLevel(TOKENS, unk_token="a")),
        process=Absorbing(3, Cosine()),
        intended_nfe=16,
        provenance={"recipe": "test", "seed": 7, "figures": [1.5, None]},
    )


@pytest.fixture(scope="module")
def saved(bundle, tmp_path_factory):
    return save(bundle, tmp_path_factory.mktemp("saved") / "deep" / "bundle")


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that may be spoilt."""
    return Path(shutil.copytree(saved, tmp_path / "copies" / "bundle"))


def edit_manifest(folder, **changes):
    file = folder / "bundle.yaml"
    manifest = yaml.safe_load(file.read_text()) | changes
    file.write_text(yaml.safe_dump({key: value for key, value in manifest.items() if value != ABSENT}))


def edit_weights(folder, role, change):
    file = folder / role / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


def test_a_bundle_comes_back_as_it_was_saved(bundle, folder):
    loaded = load(folder)
    ids = torch.randint(4, (2, 2), generator=named_generator("ids"))
    for role in ROLES:
        before, after = getattr(bundle, role), getattr(loaded, role)
        assert after.config == before.config
        assert not after.training
        assert all(parameter.requires_grad for parameter in after.parameters())
        for (name, expected), (found_name, found) in zip(
            before.state_dict().items(), after.state_dict().items(), strict=True
        ):
            assert name == found_name
            assert torch.equal(expected, found)
        inputs = (ids,) if role == "autoregressive" else (ids, torch.ones(2))
        assert torch.equal(before(*inputs), after(*inputs))
    assert loaded.tokenizer.get_vocab() == TOKENS
    assert loaded.process == Absorbing(3, Cosine())
    assert loaded.intended_nfe == 16
    assert loaded.provenance == bundle.provenance
    assert loaded.name == str(folder)


@pytest.mark.parametrize("role", ROLES)
def test_any_single_role_makes_a_bundle(bundle, tmp_path, role):
    loaded = load(save(Bundle(**{role: getattr(bundle, role)}), tmp_path / "one"))
    assert [name for name in ROLES if getattr(loaded, name) is not None] == [role]
    assert loaded.tokenizer is None
    assert loaded.provenance == {}


def test_half_precision_is_for_storage_only_and_spares_the_buffers(bundle, tmp_path):
    folder = save(bundle, tmp_path / "half", dtype=torch.bfloat16)
    stored = load_file(folder / "teacher" / "model.safetensors")
    assert stored["vocab_embed.embedding"].dtype == torch.bfloat16
    assert stored["rotary_emb.inv_freq"].dtype == torch.float32
    loaded = load(folder).teacher
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    expected = bundle.teacher.vocab_embed.embedding.to(torch.bfloat16).float()
    assert torch.equal(loaded.vocab_embed.embedding, expected)


def test_the_bundle_is_readable_by_others_and_leaves_nothing_beside_it(saved):
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


def test_a_failed_save_leaves_the_old_bundle_and_no_trace(bundle, folder):
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


KEYS = ("blocks.1.attn_qkv.weight", "output_layer.linear.bias")


@pytest.mark.parametrize("name", KEYS)
def test_a_missing_key_is_named(folder, name):
    edit_weights(folder, "student", lambda weights: weights.pop(name))
    with pytest.raises(UsageError, match=f"missing {name}"):
        load(folder)


def test_an_extra_key_is_named(folder):
    edit_weights(folder, "teacher", lambda weights: weights.update(surplus=torch.zeros(1)))
    with pytest.raises(UsageError, match="extra surplus"):
        load(folder)


@pytest.mark.parametrize("name", KEYS)
def test_a_key_of_another_shape_is_named(folder, name):
    edit_weights(folder, "student", lambda weights: weights.update({name: weights[name][:-1].clone()}))
    with pytest.raises(UsageError, match=f"{name} has shape"):
        load(folder)


def test_a_discriminator_without_its_spectral_vectors_is_refused(folder):
    name = "output_layer.main.0.parametrizations.weight.0._u"
    edit_weights(folder, "discriminator", lambda weights: weights.pop(name))
    with pytest.raises(UsageError, match=f"missing {name}"):
        load(folder)


@pytest.mark.parametrize("file", ["student/config.json", "discriminator/model.safetensors", "bundle.yaml"])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(UsageError, match=file.split("/")[-1]):
        load(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("student/config.json", "{", "not valid JSON"),
        ("student/config.json", "[]", "holds a JSON mapping of names; got list"),
        ("student/config.json", json.dumps({"vocab_size": 4}), "lacks the setting mask_id"),
        ("student/model.safetensors", "broken", "not a student of this format"),
        ("bundle.yaml", "a: [", "not valid YAML"),
        ("bundle.yaml", "- 1", "holds a YAML mapping of names; got list"),
        ("bundle.yaml", "a: &a [1]\nb: *a", "aliases"),
        ("bundle.yaml", "[" * 5000, "not valid YAML"),
        ("student/config.json", "[" * 500_000, "not valid JSON"),
        ("tokenizer.json", "{}", "not a tokenizer.json"),
    ],
)
def test_a_damaged_file_is_refused(folder, file, content, message):
    (folder / file).write_text(content)
    with pytest.raises(UsageError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3}, "reads bundle formats 1 and 2; .* has 3"),
        ({"format_version": "2"}, "reads bundle formats 1 and 2; .* has '2'"),
        ({"format_version": True}, "reads bundle formats 1 and 2; .* has True"),
        ({"surplus": 1}, "holds exactly"),
        ({"process": ABSENT}, "holds exactly"),
        ({"process": "absorbing"}, "process in .* is dict; got 'absorbing'"),
        ({"process": PROCESS | {"schedule": "sine"}}, "got 'sine'"),
        ({"process": PROCESS | {"schedule": 1}}, r"settings of the absorbing process are mask_id \(whole numbers\)"),
        ({"process": PROCESS | {"name": "gaussian"}}, "a process is one of absorbing, uniform; got 'gaussian'"),
        ({"process": PROCESS | {"mask_id": -1}}, "settings of the absorbing process are mask_id .* got mask_id -1"),
        ({"process": PROCESS | {"mask_id": True}}, "settings of the absorbing process are mask_id .* got mask_id True"),
        ({"process": PROCESS | {"extra": 1}}, "settings of the absorbing process are mask_id .* extra 1"),
        ({"process": PROCESS | {"mask_id": 2}}, "share its mask id 2"),
        ({"process": {"name": "uniform", "vocab_size": 4, "schedule": "cosine"}}, "share its mask id None"),
        ({"networks": {}}, "networks in .* have some of the roles"),
        ({"networks": {"judge": "dit"}}, "networks in .* have some of the roles"),
        ({"networks": {"student": "unet"}}, "a network is one of dit, dit-discriminator, gpt2; .* student: 'unet'"),
        ({"networks": {"student": ["dit"]}}, "a network is one of dit, dit-discriminator, gpt2"),
        ({"networks": {"student": "gpt2"}}, "student"),
        ({"intended_nfe": 0}, "intended_nfe in .* is 1 or more, or null; got 0"),
        ({"intended_nfe": "16"}, "intended_nfe in .* is int"),
        ({"intended_nfe": ABSENT}, "holds exactly"),
        ({"provenance": "me"}, "provenance in .* is dict"),
    ],
)
def test_a_wrong_manifest_is_refused(folder, changes, message):
    edit_manifest(folder, **changes)
    with pytest.raises(UsageError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no-such-model", "./no/folder", "/no/folder", "a/b/c"])
def test_an_unknown_name_is_refused_with_what_there_is(name):
    assert name not in bundled_names()
    with pytest.raises(UsageError, match=f"got '{name}'"):
        load(name)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def unreachable(repository, **options):
        raise ConnectionError(f"no route to {repository}\nwith a long\ntraceback")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(DidiError) as caught:
        load("owner/name")
    assert str(caught.value) == "no folder and no reachable Hub repository 'owner/name': no route to owner/name"


def test_a_hub_repository_is_a_folder_that_was_fetched(monkeypatch, bundle, folder):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repository, **options: str(folder))
    loaded = load("owner/name")
    assert loaded.name == "owner/name"
    assert torch.equal(loaded.student.vocab_embed.embedding, bundle.student.vocab_embed.embedding)


def test_the_student_comes_first_unless_a_role_is_named(bundle):
    assert bundle.denoiser() is bundle.student
    assert bundle.denoiser("teacher") is bundle.teacher
    assert Bundle(teacher=bundle.teacher).denoiser() is bundle.teacher


def test_a_role_that_is_not_there_is_refused_with_what_is(bundle):
    with pytest.raises(UsageError, match=r"has no student \(it holds teacher\)"):
        Bundle(teacher=bundle.teacher).denoiser("student")
    with pytest.raises(UsageError, match=r"has no generator \(it holds discriminator\)"):
        Bundle(discriminator=bundle.discriminator).denoiser()


def test_an_unknown_role_is_refused(bundle, unchecked):
    with pytest.raises(UsageError, match="a role is one of student, teacher, autoregressive; got 'judge'"):
        bundle.denoiser("judge")


def test_all_networks_move_together(saved):
    bundle = load(saved)
    assert bundle.to("meta") is bundle
    for role in ROLES:
        assert {parameter.device.type for parameter in getattr(bundle, role).parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "16"}, "hidden_size in .* is a whole number"),
        ({"hidden_size": 2**30}, "too large for"),
        ({"num_blocks": 10**9}, "too large for"),
        ({"num_blocks": -1}, "num_blocks in .* is a whole number"),
        ({"num_heads": True}, "num_heads in .* is a whole number"),
        ({"dropout": float("inf")}, "dropout in .* is a finite number"),
        ({"surprise": 1}, "has no setting 'surprise'"),
    ],
)
def test_settings_are_checked_before_a_network_is_built(folder, changes, message):
    file = folder / "teacher" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UsageError, match=message):
        load(folder)


def test_a_card_tells_what_is_in_a_bundle_and_where_it_came_from(bundle, folder):
    card = (folder / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "didi-instruct"
    assert all(f"| {role} |" in card for role in ROLES)
    assert "Recipe: test." in card
    assert "seed: 7" in card


def test_the_names_of_other_libraries_do_the_same(bundle, tmp_path):
    path = bundle.save_pretrained(tmp_path / "bundle")
    loaded = Bundle.from_pretrained(path)
    assert torch.equal(loaded.student.vocab_embed.embedding, bundle.student.vocab_embed.embedding)


def test_a_bundle_is_pushed_as_the_folder_it_is_loaded_from(monkeypatch, bundle, tmp_path):
    calls = []

    class Hub:
        def __init__(self, token):
            calls.append(("token", token))

        def create_repo(self, repository, **options):
            calls.append((repository, options))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub")
            return f"address of {repo_id}"

    monkeypatch.setattr("didi.models.bundle.HfApi", Hub)
    assert bundle.push_to_hub("me/mine", is_private=True, token="secret") == "address of me/mine"
    assert calls == [("token", "secret"), ("me/mine", {"private": True, "exist_ok": True})]
    loaded = load(tmp_path / "hub")
    assert torch.equal(loaded.student.vocab_embed.embedding, bundle.student.vocab_embed.embedding)


def test_a_hub_that_refuses_is_one_line(monkeypatch, bundle):
    def refuse(*_, **__):
        raise PermissionError("401 Unauthorized\nlong story")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(DidiError, match=r"the Hub did not take 'me/mine': 401 Unauthorized$"):
        bundle.push_to_hub("me/mine")


def test_a_revision_goes_to_the_hub(monkeypatch, folder):
    seen = {}

    def fetch(repository, **options):
        seen.update(repository=repository, **options)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    load("owner/name@round-7")
    assert (seen["repository"], seen["revision"]) == ("owner/name", "round-7")
    assert "*" not in "".join(seen["allow_patterns"])
