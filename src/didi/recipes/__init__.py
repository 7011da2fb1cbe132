"""Recipes: named settings. Values that differ from the defaults name their source, or were chosen on validation data.

There is a file for each domain: ``chains``, ``text``, ``openwebtext``, ``proteins``. They share ``objectives`` and the
files named after other methods and teachers. ``presets``, ``ablations`` and ``compared`` change or extend recipes.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from didi.arguments import one_of
from didi.data.markov import CHAINS
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
from didi.models.proteins import ProteinConfig
from didi.recipes import chains, compared, openwebtext, proteins, text

PRETRAIN: dict[str, PretrainConfig] = {
    **chains.PRETRAIN, **text.PRETRAIN, **openwebtext.PRETRAIN, **proteins.PRETRAIN
}  # fmt: skip
"""Recipes of teachers and autoregressive networks, by name (``didi pretrain NAME``); see ``recipe``."""

# Vocabulary sizes of named tokenizers, including the mask.
TOKENIZERS = {"gpt2": 50_258}

DISTILL: dict[str, DistillConfig] = {**chains.DISTILL, **text.DISTILL, **openwebtext.DISTILL, **proteins.DISTILL}
"""Recipes of students by DiDi-Instruct, by name (``didi distill NAME``); see ``recipe``."""

VARIANTS: dict[tuple[str, str], DistillationConfig] = {**chains.VARIANTS, **text.VARIANTS, **openwebtext.VARIANTS}
"""Recipes of methods other than DiDi-Instruct, by recipe and method.

Other pairs have the defaults of the method, with teacher, data and loop of the DiDi-Instruct recipe.
"""

COMPARED: dict[str, dict[str, DistillationConfig]] = compared.COMPARED
"""Settings for comparisons of methods, which replace or extend the recipes; by recipe and name."""


def distillation_recipes(method: str) -> dict[str, DistillationConfig]:
    """The recipes of a distillation method, by name.

    Raises:
        UsageError: no distillation method has that name.
    """
    methods = {name: kind for name, kind in METHODS.items() if issubclass(kind.settings_type, DistillationConfig)}
    settings_type = methods[one_of("a distillation method", method, list(methods))].settings_type
    recipes: dict[str, DistillationConfig] = {}
    for name, base in DISTILL.items():
        shared = {"recipe": name, "teacher": base.teacher, "seed": base.seed, "data": base.data, "loop": base.loop}
        is_own = type(base) is settings_type
        recipes[name] = base if is_own else VARIANTS.get((name, method)) or settings_type(**shared)
    return recipes


Config = TypeVar("Config")


def recipes_of(method: str) -> dict[str, Any]:
    """The recipes of any method, by name.

    Raises:
        UsageError: no method has that name.
    """
    settings_type = find_method(method).settings_type
    if issubclass(settings_type, DistillationConfig):
        return dict(distillation_recipes(method))
    return {name: config for name, config in PRETRAIN.items() if type(config) is settings_type}


def num_symbols(data: DataConfig) -> int:
    """Vocabulary size of a corpus including the mask, from its settings, without loading a tokenizer.

    Raises:
        UsageError: the settings do not determine the size.
    """
    if is_protein_corpus(data.corpus):
        return ProteinSource.vocab_size
    if data.corpus in CHAINS:
        return CHAINS[data.corpus]().num_symbols + 1
    size = data.vocab_size or TOKENIZERS.get(str(data.tokenizer))
    if size is None:
        raise UsageError(
            f"data.vocab_size, or a data.tokenizer of {', '.join(TOKENIZERS)}, gives the size of the vocabulary; got "
            f"{data.vocab_size} and {data.tokenizer!r}"
        )
    return size


def recipe(recipes: Mapping[str, Config], name: str) -> Config:
    """The recipe called ``name``.

    Raises:
        UsageError: no recipe has that name.
    """
    name = RENAMED_RECIPES.get(name, name)
    if name not in recipes:
        raise UsageError(f"a recipe is one of {', '.join(recipes)}; got {name!r}{suggestion(name, recipes)}")
    return recipes[name]


def teacher_recipe(settings: DistillationConfig) -> str:
    """Name of the recipe that pre-trains the teacher of a distillation.

    This is the recipe of the same name, or its uniform-state counterpart ``NAME-duo`` if the method supports no masked
    teachers.
    """
    processes = getattr(method_of(settings), "processes", ())
    names = (settings.recipe, f"{settings.recipe}-duo")
    fitting = [name for name in names if name in PRETRAIN and PRETRAIN[name].process in processes]
    return fitting[0] if fitting else settings.recipe


def teacher_shape(name: str) -> DiTConfig | ProteinConfig:
    """Shape of the teacher that a recipe pre-trains or distils, without loading a tokenizer.

    Raises:
        UsageError: no recipe of a teacher has that name.
    """
    if name in proteins.TEACHERS:
        return proteins.TEACHERS[name]
    process, recipe = teacher_process(name), PRETRAIN[name]
    vocab_size = process.num_symbols(num_symbols(recipe.data))
    return denoiser_shape(recipe.network, vocab_size=vocab_size, mask_id=process.mask_id, length=recipe.data.length)


def teacher_process(name: str) -> Process:
    """Diffusion process of the teacher that a recipe pre-trains, without loading a tokenizer.

    Raises:
        UsageError: no recipe of a teacher has that name.
    """
    names = teacher_names()
    if name not in names:
        raise UsageError(f"a recipe of a teacher is one of {', '.join(names)}; got {name!r}")
    recipe, vocab_size = PRETRAIN[name], num_symbols(PRETRAIN[name].data)
    return find_process(recipe.process).of_tokenizer(vocab_size, vocab_size - 1, schedule_from_name(recipe.schedule))


def teacher_names() -> list[str]:
    """Names of the recipes that pre-train a teacher."""
    return [name for name, config in PRETRAIN.items() if config.model != "autoregressive"]
