"""How a model reads captions and scores parts: as it was published, or as it was trained here."""

import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from make_golden import CONFIG
from plain_weights import random_state_dict
from safetensors.torch import load_file, save_file
from tests_support import random_images, tiny_config

import caft
from caft.captions import even_chunks, split_sentences
from caft.checkpoint import convert, save_weights, write_manifest
from caft.checkpoint.export import export
from caft.errors import DataError
from caft.heat_maps import heat_maps
from caft.reference import from_reference
from caft.scoring import CAFTScorer
from caft.superpixels.network import SFCN

CAPTION = "A cat of 3.5 kg sits on St. Mary's Rd. near Dr. Who. It sleeps! Two dogs bark."
SENTENCES = {"default": 3, "reference": 6}


def released_weights() -> dict[str, torch.Tensor]:
    """Of a small model, its superpixel network included."""
    network = SFCN().state_dict()
    prefix = "visual.superpixel_generator."
    return random_state_dict(CONFIG, 1) | {prefix + name: v for name, v in network.items()}


def own(**changes) -> caft.CAFT:
    torch.manual_seed(0)
    return caft.create_model(tiny_config(**changes)).eval()


@pytest.fixture
def released(tmp_path):
    torch.save({"state_dict": released_weights()}, tmp_path / "CAFT.pt")
    return tmp_path / "CAFT.pt"


def forget(folder) -> None:
    """Make a folder one of a version that had no key for how captions are read."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["text"]["sentences"], config["unit_queries"]
    text = yaml.safe_dump(config)
    (folder / "config.yaml").write_text(text)
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors", metadata={"caft_config": text})


def reads_as(model: caft.CAFT) -> tuple[str, bool]:
    return model.config.text.sentences, model.config.unit_queries


PUBLISHED, TRAINED_HERE = ("reference", True), ("default", False)


def test_a_released_file_reads_as_published_wherever_it_went(released, tmp_path):
    assert reads_as(caft.load_model(released, CONFIG)) == PUBLISHED
    convert(released, tmp_path / "folder", CONFIG)
    export(tmp_path / "folder", tmp_path / "exported")
    for place in ("folder", "folder/model.safetensors", "exported"):
        assert reads_as(caft.load_model(tmp_path / place)) == PUBLISHED
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "published splitter" in card


def test_a_folder_converted_by_an_earlier_version_still_counts_as_released(released, tmp_path):
    convert(released, tmp_path / "folder", CONFIG)
    forget(tmp_path / "folder")
    write_manifest(tmp_path / "folder", {"converted_from": {"name": "CAFT.pt"}})
    shutil.copytree(tmp_path / "folder", tmp_path / "exported")
    write_manifest(tmp_path / "exported", {"exported_from": "folder"})
    for place in ("folder", "folder/model.safetensors", "exported"):
        assert reads_as(caft.load_model(tmp_path / place)) == PUBLISHED


@pytest.mark.parametrize("info", [{"step": 7}, {"converted_from": {"name": "final"}}, {}])
def test_a_model_trained_here_by_an_earlier_version_reads_as_it_was_trained(tmp_path, info):
    save_weights(own(), tmp_path / "final")
    forget(tmp_path / "final")
    write_manifest(tmp_path / "final", info)
    for place in ("final", "final/model.safetensors"):
        assert reads_as(caft.load_model(tmp_path / place)) == TRAINED_HERE


@pytest.mark.parametrize("rule", ["default", "reference"])
def test_captions_are_split_chunked_and_tokenized_by_the_model_s_rule(rule):
    text = tiny_config().text.model_copy(update={"sentences": rule})
    model = own(text=text)
    sentences = split_sentences(CAPTION, rule)
    assert len(sentences) == SENTENCES[rule]
    captions = [CAPTION, "Snow.", " ".join([CAPTION] * 3)]
    chunks = [chunk for c in captions for chunk in even_chunks(split_sentences(c, rule), 4)]
    with torch.no_grad():
        ours = model.encode_text(captions)
        expected = model.encode_text(model.tokenize(chunks).view(3, 4, -1))
        stored = model.encode_text(model.tokenize_captions([split_sentences(CAPTION)]))
        one = model.encode_text(CAPTION)
    torch.testing.assert_close(ours.parts, expected.parts)
    torch.testing.assert_close(ours.whole, expected.whole)
    torch.testing.assert_close(one.whole, ours.whole[:1])
    if rule == "default":  # sentences that a dataset holds are those of the text
        torch.testing.assert_close(stored.whole, ours.whole[:1])


def test_sentences_of_a_dataset_are_cut_further_by_the_published_rule():
    stored, cut = ["A cat of 3.5 kg", "It sleeps"], ["A cat of 3", "5 kg", "It sleeps"]
    assert caft.captions.caption_sentences(stored, "reference") == cut
    assert caft.captions.caption_sentences(stored, "default") == stored


def test_a_caption_without_a_sentence_is_named():
    with pytest.raises(DataError, match="caption 1: no sentence"):
        own().encode_text(["A cat.", " . "])


@pytest.mark.parametrize("unit", [True, False])
def test_all_scores_and_heat_maps_normalise_sub_captions_alike_or_not_at_all(unit):
    """Where they are normalised first, their length changes nothing."""
    model = own(unit_queries=unit)
    with torch.no_grad():
        images = model.encode_image(random_images(2))
        texts = model.encode_text([CAPTION, "Snow."])
        short = replace(texts, parts=texts.parts * 1e-3)
        found = []
        for parts in (texts, short):
            scorer = CAFTScorer(model)
            tile = scorer.tile(
                scorer.prepare_images({"whole": images.whole, "fine": images.fine}),
                scorer.prepare_texts({"whole": parts.whole, "parts": parts.parts}),
                ["part"],
            )
            score = model.part_scores(images, parts)
            torch.testing.assert_close(tile["part"], score, atol=1e-5, rtol=1e-4)
            found.append((score, torch.from_numpy(heat_maps(model, images, parts.parts[0]))))
    for long, scaled in zip(*found, strict=True):
        assert torch.allclose(long, scaled, atol=1e-5) == unit


def test_without_the_quirks_a_released_model_scores_as_it_was_trained():
    model = from_reference(released_weights(), CONFIG, reference_quirks=False)
    assert reads_as(model) == ("reference", False)
