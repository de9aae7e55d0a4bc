"""The cost table: figures known of CAFT-B, formulas against counted operations, the command."""

import subprocess
import sys

import pytest
import torch
from tests_support import tiny_controls
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import caft
from caft.config import FlatImageConfig, load_model_config
from caft.cost import Workload, describe, flops
from caft.errors import ConfigError
from caft.losses import caft_loss
from caft.model import ImageFeatures, TextFeatures

GIGA, MEGA = 1e9, 1e6


def rows_of(name, **workload):
    return {(r.side, r.name): r for r in describe(load_model_config(name), Workload(**workload))}


def test_caft_b_costs_what_is_known_of_it():
    rows = rows_of("caft_b", text_tokens=77, parts=8)
    gflop = {
        kind: sum(r.flop for (side, name), r in rows.items() if side == "image" and kind in name)
        for kind in ("stem", "group", "pool")
    }
    assert gflop["stem"] / GIGA == pytest.approx(7.2, abs=0.05)
    assert gflop["group"] / GIGA == pytest.approx(13.4, abs=0.05)
    assert gflop["pool"] / GIGA == pytest.approx(3.5, rel=0.02)
    assert rows["text", "part text"].flop / GIGA == pytest.approx(31.8, abs=0.05)
    heads = {key for key in rows if key[1] == "heads"}
    network = rows.pop(("image", "superpixel network"))
    assert network.frozen
    assert network.flop / GIGA == pytest.approx(4.5, abs=0.05)
    assert network.parameters / MEGA == pytest.approx(2.3, abs=0.05)
    counts = {
        "vision": sum(r.parameters for k, r in rows.items() if k[0] == "image" and k not in heads),
        "part": rows["text", "part text"].parameters,
        "whole": rows["text", "whole text"].parameters,
        "pooling": rows["losses", "pooling"].parameters,
        "heads": sum(rows[key].parameters for key in heads),
    }
    expected = {"vision": 103.3, "part": 50.6, "whole": 13.0, "pooling": 1.1, "heads": 1.3}
    assert {k: round(n / MEGA, 1) for k, n in counts.items()} == expected
    assert sum(row.parameters for row in rows.values()) == 169_219_513


@pytest.mark.parametrize("name", tiny_controls())
def test_every_parameter_of_every_control_is_in_one_row(name):
    config = tiny_controls()[name]
    rows = describe(config, Workload(parts=8))
    assert sum(r.parameters for r in rows) == sum(
        p.numel() for p in caft.create_model(config).parameters()
    )
    assert all(row.parameters > 0 and row.flop > 0 for row in rows)


def counted(run):
    """FLOP that torch counts, with attention as the products it is made of."""
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


RECIPES = ["caft_xs", "caft_s", "caft_b", "caft_l", "caft_b_mean_text", "clip_xs", "clip_b16"]


@pytest.mark.parametrize("name", [*RECIPES, "flair_b16", "flair_xs"])
def test_formulas_are_what_torch_counts(name):
    """On the model's own modules, each given tokens as the table says it sees them."""
    config = load_model_config(name)
    workload = Workload(text_tokens=20, parts=6)
    image, text = config.image, config.text
    with torch.device("meta"):
        model = caft.CAFT(config)
        encoder = model.image_encoder
        pixels = torch.empty(1, 3, image.image_size_px, image.image_size_px)

        def tokens(count, width=image.width):
            return torch.empty(1, count, width)

        def images():
            if isinstance(image, FlatImageConfig):
                encoder(pixels, pixels)
                return
            if model.superpixel_network is not None:
                model.superpixel_network(pixels)
            encoder.stem(pixels)
            counts = [image.superpixel_count, *image.segments]
            for count, group in zip(counts, encoder.groups, strict=True):
                group(tokens(1 + count), None)
            for count, pool in zip(counts, encoder.pools, strict=False):
                pool(tokens(1), tokens(count))

        def texts():
            count = workload.parts if config.losses.parts else text.chunks
            model.part_text_encoder.blocks(torch.empty(count, 20, text.width), causal=True)
            if config.losses.has_whole and text.whole == "transformer":
                model.whole_text_encoder(tokens(text.chunks, text.width))

        rows = [row for row in describe(config, workload) if row.name != "heads"]
        for side, run in (("image", images), ("text", texts)):
            ours = sum(row.flop for row in rows if row.side == side)
            assert ours == pytest.approx(counted(run), rel=0.02)


@pytest.mark.parametrize("name", ["caft", "clip", "clip_softmax", "flair"])
def test_the_losses_are_what_torch_counts(name):
    config = tiny_controls()[name]
    model = caft.create_model(config)
    count, parts, dim = 16, 6 if config.losses.parts else 1, config.embed_dim
    fine = config.image.segments[0] if config.image.segments else config.image.superpixel_count
    whole, segments = torch.randn(count, dim), torch.randn(count, fine, dim)
    images = ImageFeatures(whole, segments, whole, segments, [], torch.empty(0))
    texts = TextFeatures(torch.randn(count, parts, dim), whole)
    ours = flops(config, Workload(parts=6, global_batch=count, block_size=8)).losses
    total = counted(lambda: caft_loss(images, texts, model, block_size=8))
    # The cosine with a pooled vector is a product and a sum, which torch does not count.
    columns = 2 * (8 + 6 - 1) if config.losses.parts else 0
    assert ours - 2 * columns * dim == pytest.approx(total / count, rel=0.02)


def test_training_costs_three_forward_passes_and_follows_the_text():
    config = load_model_config("caft_b")
    short, long = (flops(config, Workload(text_tokens=n)) for n in (20, 40))
    frozen = rows_of("caft_b")["image", "superpixel network"].flop
    assert short.training == pytest.approx(3 * (short.forward - frozen) + frozen)
    assert long.text / short.text == pytest.approx(2, rel=0.02)
    assert long.image == short.image
    assert flops(config, Workload(text_tokens=400)) == flops(config, Workload(text_tokens=77))


def test_a_workload_that_cannot_be_is_refused():
    config = load_model_config("caft_b")
    with pytest.raises(ConfigError, match="parts 3: a caption has its 4 chunks at least"):
        flops(config, Workload(parts=3))
    with pytest.raises(ConfigError, match="global_batch 300 is not a multiple of block_size 256"):
        flops(config, Workload(global_batch=300))


def test_the_command_prints_the_table_and_one_line_errors():
    command = [sys.executable, "-m", "caft.model", "describe"]
    shown = subprocess.run(
        [*command, "caft_xs", "--text-tokens", "12"], capture_output=True, text=True, check=True
    )
    assert shown.stderr == ""
    lines = shown.stdout.splitlines()
    assert lines[0] == "caft_xs"
    assert lines[2].split() == ["module", "parameters", "GFLOP", "tokens"]
    assert any(line.split()[:2] == ["part", "text"] and "8 x 12 -> 8" in line for line in lines)
    total = f"{sum(p.numel() for p in caft.create_model('caft_xs').parameters()) / MEGA:.3f}M"
    assert any(line.split()[:2] == ["forward", total] for line in lines)
    wrong = subprocess.run([*command, "caft_c"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("ConfigError: model 'caft_c': no such recipe")
    assert len(wrong.stderr.splitlines()) == 1
