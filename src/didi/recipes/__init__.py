"""Named runs. Each value that departs from the field's default names its source; "ours" was chosen on validation data.

A file for each domain: ``worlds``, ``text``, ``openwebtext``, ``proteins``; ``objectives`` and ``presets`` are shared.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from didi.data.markov import WORLDS
from didi.data.protein import is_protein_corpus
from didi.data.protein_source import ProteinSource
from didi.diffusion import Process, find_process
from didi.diffusion.schedule import schedule_from_name
from didi.errors import UsageError, suggestion
from didi.methods import METHODS, find_method, method_of
from didi.methods.didi_settings import DistillConfig
from didi.methods.elbo import PretrainConfig
from didi.methods.new_networks import denoiser_shape
from didi.methods.settings import RENAMED_RECIPES, DataConfig, DistillationConfig
from didi.models.dit import DiTConfig
from didi.models.esm2 import Esm2Config
from didi.recipes import compared, openwebtext, proteins, text, worlds

PRETRAIN: dict[str, PretrainConfig] = {
    **worlds.PRETRAIN, **text.PRETRAIN, **openwebtext.PRETRAIN, **proteins.PRETRAIN
}  # fmt: skip

# Of the teachers' tokenizers, the mask included.
VOCABULARIES = {"markov": 33, "exact": 5, "tiny-news": 8192, "prose": 8192, "owt-169m": 50_258, "owt-424m": 50_258}

# The same of tokenizers by name.
TOKENIZERS = {"gpt2": 50_258}

DISTILL: dict[str, DistillConfig] = {**worlds.DISTILL, **text.DISTILL, **openwebtext.DISTILL, **proteins.DISTILL}


VARIANTS: dict[tuple[str, str], DistillationConfig] = {**worlds.VARIANTS, **text.VARIANTS, **openwebtext.VARIANTS}
"""Recipes of other methods than DiDi-Instruct, by recipe and method; others take the recipe's data and loop."""

COMPARED: dict[str, dict[str, DistillationConfig]] = compared.COMPARED
"""Settings that a comparison of methods has in place of recipes, or beside them, by recipe and name."""


def distillation_recipes(method: str) -> dict[str, DistillationConfig]:
    """The recipes of a distillation method, by name.

    Raises:
        UsageError: no distillation method has that name.
    """
    methods = {name: one for name, one in METHODS.items() if issubclass(one.settings_type, DistillationConfig)}
    if method not in methods:
        raise UsageError(f"a distillation method is one of {', '.join(methods)}; got {method!r}")
    kind = methods[method].settings_type
    found: dict[str, DistillationConfig] = {}
    for name, base in DISTILL.items():
        shared = {"recipe": name, "teacher": base.teacher, "seed": base.seed, "data": base.data, "loop": base.loop}
        found[name] = base if type(base) is kind else VARIANTS.get((name, method)) or kind(**shared)
    return found


Config = TypeVar("Config")


def recipes_of(method: str) -> dict[str, Any]:
    """The recipes of any method, by name.

    Raises:
        UsageError: no method has that name.
    """
    kind = find_method(method).settings_type
    if issubclass(kind, DistillationConfig):
        return dict(distillation_recipes(method))
    return {name: one for name, one in PRETRAIN.items() if type(one) is kind}


def num_symbols(data: DataConfig) -> int:
    """Size of the vocabulary of a corpus without its tokenizer at hand, the mask included.

    Raises:
        UsageError: the settings do not say.
    """
    if is_protein_corpus(data.corpus):
        return ProteinSource.vocab_size
    is_world = data.corpus in WORLDS  # recipe and corpus have one name
    size = VOCABULARIES[data.corpus] if is_world else data.vocab_size or TOKENIZERS.get(str(data.tokenizer))
    if size is None:
        raise UsageError(
            f"data.vocab_size, or a data.tokenizer of {', '.join(TOKENIZERS)}, gives the size of the vocabulary; got "
            f"{data.vocab_size} and {data.tokenizer!r}"
        )
    return size


def recipe(recipes: Mapping[str, Config], name: str) -> Config:
    """The recipe called ``name``.

    Raises:
        UsageError: there is none of that name.
    """
    name = RENAMED_RECIPES.get(name, name)
    if name not in recipes:
        raise UsageError(f"a recipe is one of {', '.join(recipes)}; got {name!r}{suggestion(name, recipes)}")
    return recipes[name]


def teacher_recipe(settings: DistillationConfig) -> str:
    """Name of the recipe that pre-trains the teacher of a distillation.

    That of its own name, or the uniform-state twin with Duo's curriculum where the method has no masked teachers.
    """
    processes = getattr(method_of(settings), "processes", ())
    names = (settings.recipe, f"{settings.recipe}-duo")
    fitting = [name for name in names if name in PRETRAIN and PRETRAIN[name].process in processes]
    return fitting[0] if fitting else settings.recipe


def teacher_shape(name: str) -> DiTConfig | Esm2Config:
    """Shape of the teacher that a recipe pre-trains or that its distillation is of, without its tokenizer at hand.

    Raises:
        UsageError: no recipe of a teacher has that name.
    """
    if name in proteins.TEACHERS:
        return proteins.TEACHERS[name]
    process, recipe = teacher_process(name), PRETRAIN[name]
    vocab_size = process.num_symbols(num_symbols(recipe.data))
    return denoiser_shape(recipe.network, vocab_size=vocab_size, mask_id=process.mask_id, length=recipe.data.length)


def teacher_process(name: str) -> Process:
    """Diffusion process of the teacher that a recipe pre-trains, without its tokenizer at hand.

    Raises:
        UsageError: no recipe of a teacher has that name.
    """
    names = teacher_names()
    if name not in names:
        raise UsageError(f"a shape is that of a recipe, one of {', '.join(names)}; got {name!r}")
    recipe, vocab_size = PRETRAIN[name], num_symbols(PRETRAIN[name].data)
    return find_process(recipe.process).of_tokenizer(vocab_size, vocab_size - 1, schedule_from_name(recipe.schedule))


def teacher_names() -> list[str]:
    """Recipes that pre-train a teacher."""
    return [name for name, one in PRETRAIN.items() if one.model != "autoregressive"]
