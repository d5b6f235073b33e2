"""Train one network for many dense prediction tasks from partly labelled images, and get the missing labels back."""

from multidense.version import __version__

_HOMES = {
    "SemanticSegmentation": "multidense.tasks",
    "HumanParts": "multidense.tasks",
    "Depth": "multidense.tasks",
    "Normals": "multidense.tasks",
    "Edges": "multidense.tasks",
    "Saliency": "multidense.tasks",
    "build_model": "multidense.models",
    "load_model": "multidense.models",
    "Objective": "multidense.objective",
    "Training": "multidense.train",
    "fit": "multidense.train",
    "Discovered": "multidense.store",
    "discover": "multidense.discovery",
    "evaluate": "multidense.evaluation",
    "Results": "multidense.results",
    "delta_mtl": "multidense.results",
    "MultidenseError": "multidense.types",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str):
    """Public names are fetched from their modules when first used, so that `multidense --help` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'multidense' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
