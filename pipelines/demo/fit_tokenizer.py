"""Fits the small vocabulary that caft_xs reads, on the demo's own captions.
Run by hand as `python -m pipelines.demo.fit_tokenizer`; its result ships in caft/assets."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from caft.tokenizer import ASSET_DIR, clean_text
from pipelines.demo.sample import PHOTOGRAPHS
from pipelines.demo.scenes import SceneConfig, render_scene

VOCABULARY = 1536
SCENES = 1000  # enough to meet every word of the generator


def main() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel()]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(clean_text, _captions()), trainer)
    tokenizer.add_special_tokens(["<start>", "<end>"])  # the two largest ids
    tokenizer.save(str(ASSET_DIR / "demo.json"), pretty=False)
    print(f"{tokenizer.get_vocab_size()} tokens")


def _captions() -> Iterator[str]:
    for seed in range(SCENES):
        yield render_scene(seed, SceneConfig(hard=seed % 2 == 0)).caption
    for entry in json.loads((PHOTOGRAPHS / "captions.json").read_text(encoding="utf-8")):
        yield from [entry["long_caption"], *entry["short_captions"]]


if __name__ == "__main__":
    main()
