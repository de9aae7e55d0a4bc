"""Typed model configuration, and the reading of YAML files into typed schemas.
First step of every run: nothing expensive starts before a file has passed through here."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from caft.captions import Rule
from caft.documents import parse_yaml, read_text
from caft.errors import ConfigError
from caft.old_keys import renewed
from caft.overrides import apply_override, leaves, merged
from caft.problems import described

SFCN_CELL_PX = 16  # the stride of the superpixel network

# What torch, NumPy and Arrow all take.
Seed = Annotated[int, Field(ge=0, lt=2**63)]

PictureRule = Annotated[
    Literal["crop", "squash"],
    Field(
        description="how a picture is brought to the image size in evaluation: 'crop', its centre, "
        "as published; 'squash', the whole of it"
    ),
]


class Config(BaseModel):
    """Base of every schema: immutable, an unknown key is an error, and numbers are finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _with_todays_keys(cls, raw: Any) -> Any:
        return renewed(cls.__name__, raw) if isinstance(raw, Mapping) else raw


class SuperpixelConfig(Config):
    """How an image is cut into superpixels before the first attention block."""

    method: Literal["sfcn", "seeds", "grid"] = "seeds"
    cell_px: int = Field(16, gt=0, description="mean superpixel edge: one superpixel per cell")
    iterations: int = Field(20, gt=0, description="passes of SEEDS over an image")
    weights: str = Field(
        "sfcn",
        description="of SFCN in a new model: one shipped in caft/assets, a .safetensors file, or "
        "the published SpixelNet's .tar",
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

    encoder: Literal["superpixels"] = "superpixels"
    image_size_px: int = Field(224, gt=0)
    # Before there was this key all pictures were squashed, so a stored configuration that lacks it
    # means that; the published recipes name the crop.
    preprocess: PictureRule = "squash"
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


class FlatImageConfig(Config):
    """Plain ViT on a grid of patches, for comparison: no pools, one level of tokens throughout.

    What is asked of either encoder is answered here too: a patch stands for a superpixel.
    """

    encoder: Literal["flat"] = "flat"
    image_size_px: int = Field(224, gt=0)
    preprocess: PictureRule = "squash"  # as in ImageConfig
    patch_px: int = Field(16, gt=0)
    width: int = Field(768, gt=0)
    heads: int = Field(12, gt=0)
    mlp_ratio: float = Field(4.0, gt=0)
    depth: int = Field(12, gt=0)

    @property
    def superpixels(self) -> SuperpixelConfig:
        return SuperpixelConfig(method="grid", cell_px=self.patch_px)

    @property
    def superpixel_count(self) -> int:
        return (self.image_size_px // self.patch_px) ** 2

    @property
    def group_depths(self) -> tuple[int, ...]:
        return (self.depth,)

    @property
    def segments(self) -> tuple[int, ...]:
        return ()

    @model_validator(mode="after")
    def _consistent(self) -> FlatImageConfig:
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}")
        if self.image_size_px % self.patch_px:
            raise ValueError(
                f"image_size_px {self.image_size_px} must be a multiple of patch_px {self.patch_px}"
            )
        return self


def _encoder_tag(image: Any) -> str:
    """Which schema an image section follows. A tag has a space, which no key has."""
    if isinstance(image, Mapping):
        return f"{image.get('encoder', 'superpixels')} encoder"
    return f"{getattr(image, 'encoder', None)} encoder"


EitherImageConfig = Annotated[
    Annotated[ImageConfig, Tag("superpixels encoder")]
    | Annotated[FlatImageConfig, Tag("flat encoder")],
    Discriminator(
        _encoder_tag,
        custom_error_type="encoder",
        custom_error_message="must be a section whose encoder is 'superpixels' or 'flat'",
    ),
]


Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]


class TextConfig(Config):
    """Part-text and whole-text Transformers; the defaults are CAFT-B."""

    tokenizer: str = Field("clip", description="'clip', or a tokenizer.json shipped in caft/assets")
    vocab_size: int = Field(49408, gt=0)
    context_length: int = Field(77, gt=1)
    width: int = Field(512, gt=0)
    heads: int = Field(8, gt=0)
    layers: int = Field(8, gt=0)
    whole: Literal["transformer", "mean"] = Field(
        "transformer", description="how chunks make the whole caption, where a whole loss asks"
    )
    whole_layers: int = Field(4, gt=0)
    whole_heads: int = Field(8, gt=0)
    chunks: int = Field(4, gt=0, description="chunks of a caption that feed the whole-text encoder")
    sentences: Rule = Field(
        "default",
        description="rule of `split_sentences` that the captions of training were split by; the "
        "train stage takes it from the dataset",
    )

    @model_validator(mode="after")
    def _consistent(self) -> TextConfig:
        for heads in (self.heads, self.whole_heads):
            if self.width % heads:
                raise ValueError(f"width {self.width} is not divisible by {heads} heads")
        return self


class LossWeights(Config):
    """The factor of each term in the total that training minimises."""

    part_text_conditioned: float = Field(1.0, ge=0)
    part_multi_positive: float = Field(1.0, ge=0)
    whole: float = Field(1.0, ge=0)


class LossConfig(Config):
    """Which losses train the model. What no loss reads is not part of the model."""

    parts: bool = Field(True, description="the two part losses: sub-captions and fine segments")
    whole: Literal["sigmoid", "softmax", "none"] = Field(
        "sigmoid", description="'softmax' is CLIP's cross-entropy on the whole global batch"
    )
    weights: LossWeights = LossWeights()

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms that `caft_loss` gives."""
        left_out = {
            "part_text_conditioned": not self.parts,
            "part_multi_positive": not self.parts,
            "whole": not self.has_whole,
        }
        return tuple(name for name, _ in self.weights if not left_out.get(name))

    @property
    def has_whole(self) -> bool:
        return self.whole != "none"

    @model_validator(mode="after")
    def _consistent(self) -> LossConfig:
        if not self.parts and not self.has_whole:
            raise ValueError("parts false and whole 'none' leave no loss to train with")
        for name, weight in self.weights:
            if name not in self.terms and weight != 1:
                raise ValueError(f"weights.{name} {weight:g}: this configuration has no such loss")
        if not any(weight for name, weight in self.weights if name in self.terms):
            raise ValueError("weights: every loss weighs 0, so there is nothing to train with")
        return self


class ModelConfig(Config):
    """A whole CAFT model, or a control: the same model with parts of it left out.

    `name` is what reports and MLflow call it. A mapping may name a recipe as its `base` and give
    only what differs, as in `{base: caft_b, losses: {parts: false}}`.
    """

    name: str = "caft_b"
    embed_dim: int = Field(512, gt=0)
    pool_heads: int = Field(8, gt=0)
    init_logit_bias: float = -10.0
    mask_dead_superpixels: bool = Field(
        True, description="false keeps them as duplicates, as the released checkpoints expect"
    )
    unit_queries: bool = Field(
        False,
        description="in scores and heat maps, L2-normalise a sub-caption before the attention "
        "pool; only released checkpoints, which are trained without it, are published so",
    )
    activation: Activation = Field("gelu", description="of image and part-text blocks")
    image: EitherImageConfig = ImageConfig()
    text: TextConfig = TextConfig()
    losses: LossConfig = LossConfig()

    @model_validator(mode="before")
    @classmethod
    def _on_its_base(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or "base" not in raw:
            return raw
        changes = {key: value for key, value in raw.items() if key != "base"}
        base = load_model_config(str(raw["base"]))
        changed = [f"{key}={json.dumps(value, default=str)}" for key, value in leaves(changes)]
        name = " ".join([base.name, *changed]).replace('"', "")
        return merged(base.model_dump(mode="json") | {"name": name}, changes)

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if not self.losses.has_whole and self.image.encoder == "superpixels":
            raise ValueError(
                "losses.whole 'none' leaves the coarse half of the superpixels encoder without a "
                "loss; train with a whole loss, or set image.encoder flat"
            )
        if self.losses.parts and self.embed_dim % self.pool_heads:
            raise ValueError(
                f"pool_heads {self.pool_heads} does not divide embed_dim {self.embed_dim}"
            )
        return self


def _choice_tag(model: Any) -> str:
    return "recipe name" if isinstance(model, str) else "model section"


ModelChoice = Annotated[
    Annotated[str, Tag("recipe name")] | Annotated[ModelConfig, Tag("model section")],
    Discriminator(_choice_tag),
]

# In an installed package the recipes lie inside of it, in a checkout beside it.
_HERE = Path(__file__).resolve().parent
RECIPES = next((f for f in (_HERE / "configs", _HERE.parent / "configs") if f.is_dir()), _HERE)
MODEL_CONFIG_DIR = RECIPES / "model"

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
        apply_override(raw, override)
    return validate(schema, raw, source=str(path) if path is not None else "command line")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; raises ConfigError naming the file otherwise."""
    path = Path(path)
    try:
        raw = parse_yaml(read_text(path, ConfigError), str(path), ConfigError)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
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
        problems = [described(problem, schema) for problem in error.errors()]
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" * (len(problems) > 3))
        raise ConfigError(f"{source}: {shown}") from None
    except RecursionError:
        raise ConfigError(f"{source}: base: names a file that is based on itself") from None


def to_yaml(config: Config) -> str:
    """The whole resolved configuration as YAML, in the schema's order."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
