"""CAFT in plain PyTorch: model, losses, captions, metrics. Needs no cluster.
`create_model` makes one, `load_model` reads one; `localize` and `hierarchy` show what it sees."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caft.checkpoint import load_model
    from caft.heat_maps import hierarchy, localize
    from caft.model import CAFT, ImageFeatures, TextFeatures, create_model
    from caft.pictures import draw_panel
    from caft.reference import from_reference

__version__ = "0.1.0"

__all__ = [
    "CAFT",
    "ImageFeatures",
    "TextFeatures",
    "create_model",
    "draw_panel",
    "from_reference",
    "hierarchy",
    "load_model",
    "localize",
]

_MODULES = {
    "CAFT": "model",
    "ImageFeatures": "model",
    "TextFeatures": "model",
    "create_model": "model",
    "draw_panel": "pictures",
    "from_reference": "reference",
    "hierarchy": "heat_maps",
    "load_model": "checkpoint",
    "localize": "heat_maps",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: most processes of the pipelines need no PyTorch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'caft' has no attribute '{name}'")
    return getattr(import_module(f"caft.{_MODULES[name]}"), name)
