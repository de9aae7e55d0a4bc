"""Every filter on rows that it refuses and on the nearest rows that it lets pass."""

import subprocess
import sys

import pytest

from caft.config import validate
from caft.errors import ConfigError
from pipelines.data.config import FilterConfig
from pipelines.data.filters import (
    AFTER_DECODE,
    BEFORE_DOWNLOAD,
    FILTERS,
    apply_filters,
    check_filters,
    longest_caption,
)
from pipelines.data.reasons import REASONS


def row(*sentence_lists, **fields):
    captions = [
        {"source": f"caption{n}", "kind": "long", "sentences": list(sentences)}
        for n, sentences in enumerate(sentence_lists or [["A red car stands in the street"]])
    ]
    image = {"original_width": 640, "original_height": 480, "contrast": 40.0}
    stored = {"width": 512, "height": 384}
    return {"reason": None, "detail": "", "captions": captions, "columns": {}} | (
        image | stored | fields
    )


def refusal(filtered, filters=FILTERS, **thresholds):
    apply_filters(filtered, FilterConfig(**thresholds), filters)
    return (filtered["reason"], filtered["detail"])


PASSES = (None, "")


@pytest.mark.parametrize(
    ("good", "bad", "thresholds", "reason", "detail"),
    [
        ({"original_height": 32}, {"original_height": 31}, {}, "too_small", "640 x 31 pixels"),
        (
            {"original_width": 3000, "original_height": 1000},
            {"original_width": 1000, "original_height": 3001},
            {"max_aspect_ratio": 3},
            "aspect_ratio",
            "1000 x 3001 pixels",
        ),
        ({"contrast": 2.0}, {"contrast": 1.994}, {}, "near_constant", "contrast 1.99"),
    ],
)
def test_sizes_are_judged_on_the_original(good, bad, thresholds, reason, detail):
    assert refusal(row(width=8, height=8, **good), **thresholds) == PASSES
    assert refusal(row(**bad), **thresholds) == (reason, detail)


def test_caption_length_is_the_longest_captions_and_sentences_are_counted_over_all():
    captions = (["ab"], ["abc", "def"])  # reads "abc. def"
    assert refusal(row(*captions), min_caption_chars=8) == PASSES
    assert refusal(row(*captions), min_caption_chars=9) == ("short_caption", "8 characters")
    assert refusal(row(*captions), min_sentences=3) == PASSES
    assert refusal(row(*captions), min_sentences=4) == ("few_sentences", "3 sentences")
    assert longest_caption(row(*captions)["captions"]) == ["abc", "def"]


def test_repeats_are_counted_within_a_caption_whatever_their_case_and_spaces():
    caption = ["A dog", "a  DOG ", "A cat", "A bird"]
    assert refusal(row(caption, ["A dog"]), max_repeated_share=0.25) == PASSES
    assert refusal(row(["fine"], caption), max_repeated_share=0.2) == (
        "repeated_text",
        "1 of 4 sentences repeat, such as 'a  DOG ' (caption1)",
    )


def test_a_template_is_searched_in_the_whole_caption():
    found = refusal(row(["Buy now", "Free shipping"]), refuse_patterns=["nothing", r"now\. Free"])
    assert found == ("templated_text", r"'now\\. Free' matches 'now. Free' (caption0)")
    assert refusal(row(["Buy now"]), refuse_patterns=["^now", "Buy$"]) == PASSES


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("Two people walk a small dog along the beach at sunset", True),
        ("Zwei Leute gehen bei Sonnenuntergang mit einem Hund am Strand spazieren", False),
        ("夕暮れの海辺を二人が小さな犬と歩いている", False),
        ("IMG 2034", True),  # says nothing of a language
    ],
)
def test_other_languages_are_refused_where_the_text_tells(text, passes):
    reason, detail = refusal(row([text], ["Kurz"]), languages=["en"])
    assert reason == (None if passes else "language")
    assert passes or text[:10] in detail


@pytest.mark.parametrize(
    ("wanted", "value", "detail"),
    [
        ({"max": 0.5}, 0.5, None),
        ({"max": 0.5}, "0.5", None),
        ({"max": 0.5}, 0.51, "score: 0.51 is above 0.5"),
        ({"min": 3}, "2", "score: 2 is below 3"),
        ({"min": 3}, "abc", "score: 'abc' is no number"),
        ({"min": 3}, None, None),
        ({"min": 3}, "", None),
        ({"min": 3}, float("nan"), None),
        ({"refuse": ["NSFW"]}, "NSFW", "score: 'NSFW' is refused"),
        ({"refuse": ["NSFW"]}, "UNLIKELY", None),
        ({"refuse": ["1"]}, 1.0, "score: '1' is refused"),
    ],
)
def test_columns(wanted, value, detail):
    expected = PASSES if detail is None else ("column", detail)
    assert refusal(row(columns={"score": value}), columns={"score": wanted}) == expected
    assert refusal(row(columns={}), columns={"score": wanted}) == PASSES


def test_the_first_reason_stays():
    bad = row(["ab"], original_width=1, contrast=0.0)
    assert refusal(bad, min_caption_chars=5, min_sentences=5) == ("short_caption", "2 characters")
    assert refusal(row(reason="dns", detail="x", contrast=0.0)) == ("dns", "x")


def test_text_filters_need_no_image_and_image_filters_no_text():
    thresholds = {"min_caption_chars": 5, "languages": ["en"], "columns": {"a": {"max": 1}}}
    text = {"reason": None, "captions": row()["captions"], "columns": {"a": "2"}}
    assert refusal(text | {"detail": ""}, BEFORE_DOWNLOAD, **thresholds)[0] == "column"
    image = {"reason": None, "original_width": 99, "original_height": 99, "contrast": 1.0}
    assert refusal(image | {"detail": ""}, AFTER_DECODE, **thresholds)[0] == "near_constant"


def test_filters_stand_in_the_order_of_the_table_of_reasons():
    named = [reason for reason in REASONS if reason in {entry.reason for entry in FILTERS}]
    assert [entry.reason for entry in FILTERS] == named


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"refuse_patterns": ["ok", "(a"]},
            r"refuse_patterns: '\(a' is no regular expression: missing \), unterminated",
        ),
        ({"columns": {"a": {"min": 2, "max": 1}}}, "columns.a: min 2 is above max 1"),
    ],
)
def test_impossible_settings_are_named_when_the_configuration_is_read(raw, message):
    with pytest.raises(ConfigError, match=message):
        validate(FilterConfig, raw, source="data.yaml")


def test_unknown_languages_are_refused_with_the_nearest():
    check_filters(FilterConfig())
    check_filters(FilterConfig(languages=["en", "de"]))
    with pytest.raises(ConfigError, match=r"no language code 'eng'; the nearest .* are en, "):
        check_filters(FilterConfig(languages=["de", "eng"]))


def test_a_missing_language_package_is_named_with_its_extra():
    program = (
        "import sys; sys.modules['py3langid'] = None\n"  # as if it were not installed
        "from pipelines.data.config import FilterConfig\n"
        "from pipelines.data.filters import check_filters\n"
        "check_filters(FilterConfig())\n"
        "check_filters(FilterConfig(languages=['en']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "ConfigError: filters.languages: needs" in done.stderr
    assert "pip install -e '.[language]'" in done.stderr
