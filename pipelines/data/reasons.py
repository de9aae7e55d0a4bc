"""The closed vocabulary of reasons for which a row is rejected, in the order a row meets them.
Every module that rejects names one of these; docs/data.md shows this table."""

from __future__ import annotations

from typing import NamedTuple


class Reason(NamedTuple):
    """Where a reason arises, what it means, and whether another day may change it."""

    stage: str
    text: str
    transient: bool = False


REASONS = {
    "bad_row": Reason("plan", "a line of the list that does not have the list's columns"),
    "bad_text": Reason("plan", "a URL or caption with bytes that are not of its encoding"),
    "bad_url": Reason("plan", "neither an http(s) URL with a host nor a file of a known place"),
    "no_caption": Reason("plan", "no caption with a sentence in it"),
    "no_caption_row": Reason("plan", "no row of `captions_from` belongs to the image"),
    "not_sampled": Reason("plan", "outside the share of its source that `weight` takes"),
    "merged_captions": Reason("plan", "its captions are with an earlier row of the same URL"),
    "duplicate_url": Reason("plan", "another row has the same URL and longer captions"),
    "short_caption": Reason("filter", "no caption as long as filters.min_caption_chars"),
    "few_sentences": Reason("filter", "fewer sentences than filters.min_sentences"),
    "repeated_text": Reason("filter", "sentences repeat more than filters.max_repeated_share"),
    "templated_text": Reason("filter", "a caption matches one of filters.refuse_patterns"),
    "language": Reason("filter", "the longest caption is in none of filters.languages"),
    "column": Reason("filter", "a column's value that filters.columns refuses"),
    "private_address": Reason("download", "the host resolves to an address that is not public"),
    "dns": Reason("download", "the host name does not resolve", True),
    "connection": Reason("download", "the connection was refused or broke off", True),
    "tls": Reason("download", "the server's certificate is not valid"),
    "timeout": Reason("download", "no complete answer within the time limits", True),
    "http_429": Reason("download", "the server asks for fewer requests", True),
    "http_4xx": Reason("download", "the server refused: 400 to 499 but 429"),
    "http_5xx": Reason("download", "the server failed: 500 to 599", True),
    "http_status": Reason("download", "the server answered neither an image nor an error"),
    "redirects": Reason("download", "more redirects than download.max_redirects, or to nowhere"),
    "bad_answer": Reason("download", "the answer is not HTTP, or cannot be unpacked"),
    "http_other": Reason("download", "one of these three, in datasets of earlier versions"),
    "noai": Reason("download", "the server forbids use for training (X-Robots-Tag)"),
    "too_large": Reason(
        "download", "more bytes than download.max_bytes, or than its pixels explain"
    ),
    "missing_file": Reason("download", "the image file is not where the list says"),
    "not_an_image": Reason("image", "the bytes are no image in a supported format"),
    "truncated_image": Reason("image", "the image ends early or is damaged"),
    "decompression_bomb": Reason("image", "more pixels than image.max_pixels or max_image_area"),
    "decoder_crash": Reason("image", "decoding it ends or stalls the decoding process"),
    "too_small": Reason("filter", "a side below filters.min_side_px or image.min_image_size"),
    "aspect_ratio": Reason(
        "filter", "more elongated than the max_aspect_ratio of filters or image"
    ),
    "near_constant": Reason("filter", "less contrast than filters.min_contrast"),
    "low_similarity": Reason("filter", "image and captions agree less than filters.similarity"),
    "evaluation_image": Reason("decontamination", "near-duplicate of an evaluation image"),
    "duplicate_image": Reason("duplicates", "another row has the same image bytes"),
    "near_duplicate": Reason("duplicates", "another row has nearly the same image"),
}
