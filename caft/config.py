"""Typed model configuration, and the reading of YAML files into typed schemas.
First step of every run: nothing expensive starts before a file has passed through here."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from caft.errors import ConfigError

SFCN_CELL_PX = 16  # the stride of the superpixel network


class Config(BaseModel):
    """Base of every schema: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class SuperpixelConfig(Config):
    """How an image is cut into superpixels before the first attention block."""

    method: Literal["sfcn", "seeds", "grid"] = "seeds"
    cell_px: int = Field(16, gt=0, description="mean superpixel edge: one superpixel per cell")
    iterations: int = Field(20, gt=0, description="passes of SEEDS over an image")
    weights: str = Field(
        "sfcn", description="of SFCN in a new model: a .safetensors file, or one in caft/assets"
    )
    unnormalise_with: Literal["clip", "imagenet"] = Field(
        "clip",
        description="statistics that give SFCN its RGB back; 'imagenet' is a slip that the "
        "released checkpoints were trained with",
    )

    @model_validator(mode="after")
    def _consistent(self) -> SuperpixelConfig:
        if self.method == "sfcn" and self.cell_px != SFCN_CELL_PX:
            raise ValueError(
                f"cell_px {self.cell_px}: method 'sfcn' makes cells of {SFCN_CELL_PX} px; "
                "set that, or method 'seeds' or 'grid'"
            )
        return self


class ImageConfig(Config):
    """Fine-to-coarse image encoder; the defaults are CAFT-B, with SEEDS, which needs no weights."""

    image_size_px: int = Field(224, gt=0)
    stem_widths: tuple[int, ...] = (96, 192, 384, 768)
    stem_strides: tuple[int, ...] = (2, 2, 2, 1)
    width: int = Field(768, gt=0)
    heads: int = Field(12, gt=0)
    mlp_ratio: float = Field(4.0, gt=0)
    group_depths: tuple[int, int, int, int] = (3, 3, 3, 2)
    segments: tuple[int, int, int] = (64, 32, 16)
    pool_attn_heads: int = Field(12, gt=0, description="heads of a graph pool's self-attention")
    pool_dropout: float = Field(0.1, ge=0, lt=1)
    superpixels: SuperpixelConfig = SuperpixelConfig()

    @property
    def stem_stride(self) -> int:
        """Input pixels per cell of the stem's feature grid, per side."""
        stride = 1
        for step in self.stem_strides:
            stride *= step
        return stride

    @property
    def superpixel_count(self) -> int:
        """Superpixels of an image of the configured size."""
        return (self.image_size_px // self.superpixels.cell_px) ** 2

    @model_validator(mode="after")
    def _consistent(self) -> ImageConfig:
        if len(self.stem_widths) != len(self.stem_strides):
            raise ValueError("stem_widths and stem_strides must have the same length")
        for name in ("heads", "pool_attn_heads"):
            if self.width % getattr(self, name):
                raise ValueError(f"{name} {getattr(self, name)} does not divide width {self.width}")
        if self.width % 4:
            raise ValueError(f"width {self.width} must be divisible by 4 (sin-cos positions)")
        if self.image_size_px % self.superpixels.cell_px or self.image_size_px % self.stem_stride:
            raise ValueError(
                f"image_size_px {self.image_size_px} must be a multiple of superpixels.cell_px "
                f"{self.superpixels.cell_px} and of the stem's stride {self.stem_stride}"
            )
        counts = (self.superpixel_count, *self.segments)
        if any(later >= earlier for earlier, later in itertools.pairwise(counts)):
            raise ValueError(f"token counts must fall at every pool, got {counts}")
        return self


class TextConfig(Config):
    """Part-text and whole-text Transformers; the defaults are CAFT-B."""

    tokenizer: str = Field("clip", description="'clip', or a tokenizer.json shipped in caft/assets")
    vocab_size: int = Field(49408, gt=0)
    context_length: int = Field(77, gt=1)
    width: int = Field(512, gt=0)
    heads: int = Field(8, gt=0)
    layers: int = Field(8, gt=0)
    whole_layers: int = Field(4, gt=0)
    whole_heads: int = Field(8, gt=0)
    chunks: int = Field(4, gt=0, description="chunks of a caption that feed the whole-text encoder")

    @model_validator(mode="after")
    def _consistent(self) -> TextConfig:
        for heads in (self.heads, self.whole_heads):
            if self.width % heads:
                raise ValueError(f"width {self.width} is not divisible by {heads} heads")
        return self


class ModelConfig(Config):
    """A whole CAFT model. `name` is what reports and MLflow call it."""

    name: str = "caft_b"
    embed_dim: int = Field(512, gt=0)
    pool_heads: int = Field(8, gt=0)
    init_logit_bias: float = -10.0
    mask_dead_superpixels: bool = Field(
        True, description="false keeps them as duplicates, as the released checkpoints expect"
    )
    image: ImageConfig = ImageConfig()
    text: TextConfig = TextConfig()


MODEL_CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs" / "model"

ConfigT = TypeVar("ConfigT", bound=Config)


def load_model_config(name_or_path: str | Path | Mapping[str, Any] | ModelConfig) -> ModelConfig:
    """Return the model configuration for a recipe name (`caft_b`), a YAML file or a mapping.

    Raises:
        ConfigError: no such recipe or file, or a key or value that does not fit the schema.
    """
    if isinstance(name_or_path, ModelConfig):
        return name_or_path
    if isinstance(name_or_path, Mapping):
        return validate(ModelConfig, name_or_path, source="model configuration")
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = MODEL_CONFIG_DIR / f"{name_or_path}.yaml"
        if not path.exists():
            known = ", ".join(sorted(p.stem for p in MODEL_CONFIG_DIR.glob("*.yaml")))
            raise ConfigError(f"model '{name_or_path}': no such recipe; known: {known}")
    return load_config(ModelConfig, path)


def load_config(
    schema: type[ConfigT], path: str | Path | None, overrides: Sequence[str] = ()
) -> ConfigT:
    """Read a YAML file, apply `key.sub=value` overrides and check both against `schema`.

    Raises:
        ConfigError: missing file, invalid YAML, malformed override, unknown key, wrong type or
            impossible value; the message names the file and the key.
    """
    raw = read_yaml(path) if path is not None else {}
    for override in overrides:
        _apply_override(raw, override)
    return validate(schema, raw, source=str(path) if path is not None else "command line")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; raises ConfigError naming the file otherwise."""
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must hold a mapping of keys, got {type(raw).__name__}")
    return raw


def validate(schema: type[ConfigT], raw: Mapping[str, Any], source: str) -> ConfigT:
    """Check `raw` against `schema`; the first few problems become one ConfigError line."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors()]
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" * (len(problems) > 3))
        raise ConfigError(f"{source}: {shown}") from None


def to_yaml(config: Config) -> str:
    """The whole resolved configuration as YAML, in the schema's order."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override '{override}': write it as key=value or key.sub=value")
    node: Any = raw
    *parents, leaf = key.split(".")
    for parent in parents:
        node = (
            node.setdefault(parent, {}) if isinstance(node, dict) else _item(node, parent, override)
        )
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"override '{override}': the value is not valid YAML") from None
    if isinstance(node, dict):
        node[leaf] = parsed
    else:
        _item(node, leaf, override)
        node[int(leaf)] = parsed


def _item(node: Any, index: str, override: str) -> Any:
    """An entry of a list section, as in `sources.0.path=...`."""
    if not isinstance(node, list):
        raise ConfigError(f"override '{override}': what stands before '{index}' holds a value")
    if not index.isdigit() or int(index) >= len(node):
        raise ConfigError(f"override '{override}': no entry '{index}' in a list of {len(node)}")
    return node[int(index)]


def _describe(problem: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "(top level)"
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    message = problem["msg"].removeprefix("Value error, ")
    value = problem.get("input")
    shown = "" if isinstance(value, dict) or problem["type"] == "missing" else f" (got {value!r})"
    return f"{key}: {message}{shown}"
