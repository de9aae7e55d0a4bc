"""A model of one's own behind the adapter interface, of the least that it takes."""

import torch

from pipelines.evaluate.adapters import Adapter, PixelPreprocess


class Colours(Adapter):
    """An image's mean colour, and the lengths of a caption."""

    name, fingerprint = "colours", "1"

    def preprocess(self):
        return PixelPreprocess(lambda picture: picture.mean(axis=(0, 1)))

    def encode_images(self, columns):
        return {"whole": torch.from_numpy(columns["images"]).float()}

    def encode_texts(self, captions):
        lengths = [[len(s), len(" ".join(s)), 1.0] for s in captions]
        return {"whole": torch.tensor(lengths)}

    def to(self, device):
        pass


def make_colours():
    return Colours()


class Broken(Colours):
    """It opens, and fails at the first text."""

    name, fingerprint = "broken", "2"

    def encode_texts(self, captions):
        raise ValueError("no text can be read")


def make_broken():
    return Broken()
