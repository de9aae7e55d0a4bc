"""CAFT in plain PyTorch: model, losses, captions, metrics. Needs no cluster.
`create_model` makes one, `load_model` reads one; `localize` and `hierarchy` show what it sees."""

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caft import attention_pool as attention_pool
    from caft import batch_norm as batch_norm
    from caft import caption_sampling as caption_sampling
    from caft import captions as captions
    from caft import checkpoint as checkpoint
    from caft import config as config
    from caft import cost as cost
    from caft import documents as documents
    from caft import dropout as dropout
    from caft import durable as durable
    from caft import errors as errors
    from caft import extras as extras
    from caft import factory as factory
    from caft import fine_tuning as fine_tuning
    from caft import flat_encoder as flat_encoder
    from caft import graph_pool as graph_pool
    from caft import heat_maps as heat_maps
    from caft import hub as hub
    from caft import image_encoder as image_encoder
    from caft import inputs as inputs
    from caft import layers as layers
    from caft import losses as losses
    from caft import masks as masks
    from caft import metrics as metrics
    from caft import model as model
    from caft import old_keys as old_keys
    from caft import overrides as overrides
    from caft import packing as packing
    from caft import pictures as pictures
    from caft import preprocessing as preprocessing
    from caft import problems as problems
    from caft import reference as reference
    from caft import retrieval as retrieval
    from caft import scaling_law as scaling_law
    from caft import scoring as scoring
    from caft import search as search
    from caft import secrets as secrets
    from caft import state_dicts as state_dicts
    from caft import superpixels as superpixels
    from caft import text_encoder as text_encoder
    from caft import tokenizer as tokenizer
    from caft import torch_files as torch_files
    from caft import transforms as transforms
    from caft.checkpoint import load_model
    from caft.factory import create_model_and_transforms, get_tokenizer
    from caft.heat_maps import hierarchy, localize
    from caft.hub.repository import from_pretrained, push_to_hub
    from caft.model import CAFT, ImageFeatures, TextFeatures, create_model
    from caft.pictures import draw_panel
    from caft.reference import from_reference

__version__ = "0.1.0"

__all__ = [
    "CAFT",
    "ImageFeatures",
    "TextFeatures",
    "create_model",
    "create_model_and_transforms",
    "draw_panel",
    "from_pretrained",
    "from_reference",
    "get_tokenizer",
    "hierarchy",
    "load_model",
    "localize",
    "push_to_hub",
]

_MODULES = {
    "CAFT": "model",
    "ImageFeatures": "model",
    "TextFeatures": "model",
    "create_model": "model",
    "create_model_and_transforms": "factory",
    "draw_panel": "pictures",
    "from_pretrained": "hub.repository",
    "from_reference": "reference",
    "get_tokenizer": "factory",
    "hierarchy": "heat_maps",
    "load_model": "checkpoint",
    "localize": "heat_maps",
    "push_to_hub": "hub.repository",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: most processes of the pipelines need no PyTorch."""
    if name in _MODULES:
        return getattr(import_module(f"caft.{_MODULES[name]}"), name)
    if name in _submodules():
        return import_module(f"caft.{name}")
    raise AttributeError(f"module 'caft' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_submodules()})


def _submodules() -> set[str]:
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return {name for name in names if not name.startswith("_")}
