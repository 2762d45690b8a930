"""Rules that no schema holds: what must be true of every rendered release."""

from collections.abc import Callable, Iterable

from ..model import Release

Rule = Callable[[Release], Iterable[str]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """Registers a rule by its name, which says what holds."""
    RULES[function.__name__] = function
    return function


from . import identity, network, pods, secrets, timing  # noqa: E402, F401


def broken(release: Release) -> list[str]:
    """Every fault, each with the rule that it breaks."""
    return [f"{name}: {fault}" for name, check in RULES.items() for fault in check(release)]
