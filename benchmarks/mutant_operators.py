"""The mutants of a module, by operators of Cosmic Ray that apply to this code and by two further operators."""

import pickle
import sys
from dataclasses import dataclass

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator

REPLACED = (
    *("Binary", "Add_Sub"), *("Binary", "Sub_Add"), *("Binary", "Mul_Div"), *("Binary", "Div_Mul"),
    *("Binary", "FloorDiv_Mul"), *("Binary", "Mod_Mul"), *("Binary", "Pow_Mul"),
    *("Binary", "BitAnd_BitOr"), *("Binary", "BitOr_BitAnd"),
    *("Comparison", "Eq_NotEq"), *("Comparison", "NotEq_Eq"), *("Comparison", "Lt_LtE"), *("Comparison", "Lt_GtE"),
    *("Comparison", "LtE_Lt"), *("Comparison", "LtE_Gt"), *("Comparison", "Gt_GtE"), *("Comparison", "Gt_LtE"),
    *("Comparison", "GtE_Gt"), *("Comparison", "GtE_Lt"), *("Comparison", "Is_IsNot"), *("Comparison", "IsNot_Is"),
    *("Unary", "Delete_USub"), *("Unary", "Delete_Invert"), *("Unary", "Delete_Not"),
)  # fmt: skip
OPERATORS = [
    *(f"Replace{kind}Operator_{change}" for kind, change in zip(REPLACED[::2], REPLACED[1::2], strict=True)),
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("NumberReplacer", "RemoveDecorator", "ZeroIterationForLoop"),
]


@dataclass(frozen=True)
class Mutant:
    """A module's source with one change; ``old`` and ``new`` are the lines that differ, without indentation."""

    source: str
    old: str
    new: str


class DropArgument(Operator):
    """Leave out a keyword argument of a call, except ``device``, which makes no difference on a CPU."""

    def mutation_positions(self, node):
        if node.type == "argument" and getattr(node.children[1], "value", "") == "=":
            if node.children[0].value == "device":
                return
            yield (node.start_pos, node.end_pos)

    def mutate(self, node, index):  # noqa: ARG002
        return parso.python.tree.Name("**{}", node.start_pos, prefix=node.get_first_leaf().prefix)

    @classmethod
    def examples(cls):
        return ()


class SkipUpdate(Operator):
    """Leave out a statement that changes a variable or an item: ``a += b``, ``a = f(a)``, ``a[i] = b``."""

    def mutation_positions(self, node):
        if node.type == "expr_stmt" and not any(child.type == "annassign" for child in node.children):
            target, *others = node.children
            names = {leaf.value for leaf in ast_nodes(target) if leaf.type == "name"}
            read = {leaf.value for other in others for leaf in ast_nodes(other) if leaf.type == "name"}
            if target.type == "atom_expr" or names & read or getattr(others[0], "value", "=") != "=":
                yield (node.start_pos, node.end_pos)

    def mutate(self, node, index):  # noqa: ARG002
        return parso.python.tree.Keyword("pass", node.start_pos, prefix=node.get_first_leaf().prefix)

    @classmethod
    def examples(cls):
        return ()


def mutants_of(source: str) -> list[Mutant]:
    """All different mutants of a module, in the order of its lines."""
    operators = [*(get_operator(f"core/{name}")() for name in OPERATORS), DropArgument(), SkipUpdate()]
    parsed, mutants = get_ast(source), {}
    sys.setrecursionlimit(10_000)  # copying a tree needs deep recursion
    stored = pickle.dumps(parsed)
    for operator in operators:
        places = [
            (number, index)
            for number, node in enumerate(ast_nodes(parsed))
            for index, _ in enumerate(operator.mutation_positions(node))
            if not _is_annotation(node) and not _is_keyword_only_marker(node)
        ]
        for number, index in places:
            tree = pickle.loads(stored)  # a copy, since an operator changes its nodes in place
            node = next(node for place, node in enumerate(ast_nodes(tree)) if place == number)
            parent, slot = node.parent, next(i for i, child in enumerate(node.parent.children) if child is node)
            changed = operator.mutate(node, index)
            parent.children[slot : slot + 1] = [] if changed is None else [changed]
            mutant = _mutant(source, tree.get_code())
            mutants[mutant.source] = (node.start_pos, mutant)
    return [mutant for _, mutant in sorted(mutants.values(), key=lambda entry: entry[0])]


def _is_keyword_only_marker(node) -> bool:
    """Whether a node is the ``*`` of a signature, after which parameters are keyword-only."""
    return node.type == "operator" and node.parent.type in ("parameters", "param")


def _is_annotation(node) -> bool:
    while node.parent is not None:
        parent = node.parent
        is_type = parent.type == "tfpdef" or (parent.type == "annassign" and node is parent.children[1])
        if is_type or (parent.type == "funcdef" and node is parent.annotation):
            return True
        node = parent
    return False


def _mutant(source: str, mutated: str) -> Mutant:
    old, new = source.splitlines(), mutated.splitlines()
    first = next(i for i, (before, after) in enumerate(zip(old, new, strict=False)) if before != after)
    last = next(i for i, (before, after) in enumerate(zip(old[::-1], new[::-1], strict=False)) if before != after)
    lines = [" ".join(line.strip() for line in text[first : max(first + 1, len(text) - last)]) for text in (old, new)]
    return Mutant(mutated, *lines)
