"""Licences, model cards and the citation agree with assets, bundles and package; findings come first, claims last."""

import re
import tomllib

import pytest
import yaml

from didi.data.assets import ASSETS
from didi.models.bundle import bundled_names, load
from didi.models.discriminator import num_parameters
from didi.models.manifest import FORMAT_VERSION

from .docs_pages import DOCS

ROOT = DOCS.parent
CARDS = DOCS / "model-cards"
BUNDLES = ROOT / "src/didi/bundles"
LICENCES = (DOCS / "licences.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("asset", ASSETS.values(), ids=ASSETS)
def test_every_asset_has_its_licence_on_the_page(asset):
    package = f"{asset.registry} | `{asset.requirement}`"
    assert f"| `{asset.name}` | {asset.summary} | {package} | {asset.licence} |" in LICENCES


def test_every_binary_file_of_the_tests_has_its_origin_on_the_page():
    named = re.findall(r"^\| `(tests/[^`]+)` \|", LICENCES, re.M)
    files = [file for suffix in ("safetensors", "ckpt", "pt", "bin") for file in (ROOT / "tests").rglob(f"*.{suffix}")]
    assert files
    assert [file for file in files if not any(file.match(pattern) for pattern in named)] == []


@pytest.mark.parametrize("name", bundled_names())
def test_every_bundle_has_a_card_with_its_networks(name):
    card = (CARDS / f"{name}.md").read_text()
    assert f'didi.load("{name}")' in card
    assert f"[`{name}`]({name}.md)" in (CARDS / "index.md").read_text()
    assert f"`{name}`" in LICENCES.partition("## Weights")[2]
    for role, network in load(name).networks().items():
        size = num_parameters(network)
        assert role in card
        assert f"{size:,}" in card or f"{size / 1e6:.1f} M" in card


@pytest.mark.parametrize("name", bundled_names())
def test_the_readme_of_a_bundle_is_a_model_card(name):
    text = (BUNDLES / name / "README.md").read_text("utf-8")
    header = yaml.safe_load(text.split("---")[1])
    is_generated = name.startswith(("exact", "markov"))
    assert header["license"] == ("mit" if is_generated else "other")
    assert f"\n# {name}\n" in text
    assert f'didi.load("{name}")' in text
    parts = re.findall(r"^\*\*([A-Z][a-z ]+)\*\*: \S", text, re.M)
    assert parts == ["Training data", "Licence", "Figures", "Intended use", "Limits"]
    (figures,) = re.findall(r"^\*\*Figures\*\*: (.*)$", text, re.M)
    assert "entropy" in figures


@pytest.mark.parametrize("name", bundled_names())
def test_the_figures_of_a_readme_are_also_on_the_card(name):
    text = (BUNDLES / name / "README.md").read_text("utf-8")
    card = (CARDS / f"{name}.md").read_text("utf-8")
    (figures,) = re.findall(r"^\*\*Figures\*\*: (.*)$", text, re.M)
    numbers = re.findall(r"\d[\d,]*\.\d+|\d,\d{3}|\d{3}", figures)
    assert numbers
    assert [number for number in numbers if number not in card] == []


def test_the_page_of_bundle_formats_has_the_version_that_is_written():
    assert f"| {FORMAT_VERSION} | yes | yes |" in (DOCS / "bundle-formats.md").read_text()


def test_the_citation_has_the_version_and_licence_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {citation["version"], citation["license"]} == {PROJECT["version"], PROJECT["license"]}
    assert all(key in citation for key in ("cff-version", "title", "message", "authors"))


def test_the_licences_of_code_and_weights_come_with_the_package():
    assert PROJECT["license-files"] == ["LICENSE", "docs/licences.md"]
    assert all((ROOT / file).is_file() for file in PROJECT["license-files"])


@pytest.mark.parametrize(
    "page", [*sorted((DOCS / "results").glob("*.md")), DOCS / "speed.md"], ids=lambda page: page.stem
)
def test_a_page_of_results_begins_with_its_finding(page):
    assert page.read_text().splitlines()[2].startswith("**")


@pytest.mark.parametrize(
    ("page", "title"),
    [
        ("results/markov.md", "Claims fixed before the measurement"),
        ("results/tiny-news.md", "Claims fixed before the measurement"),
        ("results/antibody.md", "Claim: students against the teacher"),
        ("results/swissprot.md", "Claim: students against the teacher"),
        ("speed.md", "Claims fixed before the measurement"),
    ],
)
def test_the_claims_are_the_last_section_of_a_page(page, title):
    assert re.findall(r"^## (.*)$", (DOCS / page).read_text(), re.M)[-1] == title


def test_no_strict_build_of_the_site_is_quiet():
    for file in ("Makefile", "tests/test_docs_site.py"):
        builds = [
            line for line in (ROOT / file).read_text("utf-8").splitlines() if "--strict" in line and "build" in line
        ]
        assert builds
        assert not [line for line in builds if "--quiet" in line]  # --quiet hides warnings before --strict counts them
