"""Outputs of earlier versions and of something else: what is compared, and the line about it."""

import json
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from pydantic import ValidationError
from stage_support import small_config

from caft import old_keys
from caft.config import Config, load_config, to_yaml
from caft.errors import ConfigError
from caft.old_keys import Before, Moved, Removed, completed
from caft.overrides import apply_override, argument
from pipelines.data.config import DataConfig
from pipelines.data.stage import FREE_FIELDS, run
from pipelines.identity import difference, first_difference
from pipelines.train.config import TrainConfig


class Part(Config):
    kind: Annotated[str, Before("squash")] = "crop"
    size: int = 3


class Whole(Config):
    part: Part = Part()
    parts: tuple[Part, ...] = ()
    steps: int = 1
    speed: int = 1


def test_a_key_that_was_not_there_yet_stands_for_what_was_done_then():
    stored = {"part": {"size": 3}, "parts": [{"size": 4}], "steps": 1}
    then = completed(Whole, stored)
    assert then == {
        "part": {"size": 3, "kind": "squash"},
        "parts": [{"size": 4, "kind": "squash"}],
        "steps": 1,
    }
    assert Whole(**stored).part.kind == "crop"  # typed today, it means today's default
    same = Whole(part=Part(kind="squash"), parts=(Part(kind="squash", size=4),))
    assert difference(stored, same, {"speed"}, "old.yaml") is None
    new = Whole(**stored)
    assert difference(stored, new, {"speed"}, "old.yaml") == ("part.kind", "squash", "crop")


def test_free_fields_may_differ_and_the_first_other_key_is_named():
    stored = to_json(Whole())
    assert difference(stored, Whole(speed=9), {"speed"}, "old.yaml") is None
    assert difference(stored, Whole(speed=9, steps=2), {"speed"}, "old.yaml") == ("steps", 1, 2)
    assert first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == ("a.1.b", 2, 3)
    assert first_difference({"a": [1]}, {"a": [1, 2]}) == ("a", [1], [1, 2])


def test_keys_that_moved_or_went_are_read_in_stored_and_typed_files_alike(monkeypatch):
    table = {"Whole": {"length": Moved("part.size"), "magic": Removed(False)}}
    monkeypatch.setattr(old_keys, "OLD_KEYS", table)
    assert Whole(length=5, magic=False).part.size == 5
    assert difference({"length": 5}, Whole(part=Part(size=5, kind="squash")), set(), "o") is None
    with pytest.raises(ValidationError, match="magic: this key was removed and False always holds"):
        Whole(magic=True)
    with pytest.raises(ValidationError, match=r"length: is part\.size now, and both are given"):
        Whole(length=5, part={"size": 4})


def to_json(config: Config) -> dict:
    return yaml.safe_load(to_yaml(config))


VALUES = [
    *(
        "/data/run #2",
        "2026-11-29",
        "001",
        "yes",
        "null",
        "~",
        "a: b",
        "[x]",
        "{y",
        "tab\tnew\nline",
    ),
    *('quote"s', "émoji 😀", " spaces ", "1e-3", "#", "", "12:30", "\\back", "%41", "a,b=c"),
]


@pytest.mark.parametrize("value", [*VALUES, 1e-05, 3, True, None, {"a": ["b #c"]}], ids=repr)
def test_what_a_program_writes_as_an_argument_is_read_as_the_same_value(value):
    raw: dict = {}
    apply_override(raw, argument("a.b", value))
    assert raw == {"a": {"b": value}}


@pytest.mark.parametrize("typed", ["output=/data/run #2", "output=#2", "output=[a, b] # c"])
def test_a_typed_override_in_which_yaml_finds_a_comment_is_refused(typed):
    with pytest.raises(ConfigError, match=r"YAML takes '#.*' for a comment.*double quotes"):
        apply_override({}, typed)
    raw: dict = {}
    apply_override(raw, "output=a#2")  # no comment without a space before it
    assert raw == {"output": "a#2"}


def test_an_unknown_key_gets_the_nearest_one():
    with pytest.raises(ConfigError, match=r"\.warmup_step: unknown key; .* 'warmup_steps'"):
        load_config(TrainConfig, None, ["optimizer.warmup_step=3", "dataset=x", "output=y"])
    with pytest.raises(ConfigError, match=r"sources\.0\.url_colum: unknown key; .* 'url_column'"):
        load_config(DataConfig, None, ['sources=[{"name": "a", "path": "b", "url_colum": "c"}]'])


def test_a_finished_dataset_of_the_version_before_is_read_and_its_keys_compared(tmp_path, capsys):
    """Its output has a digest in the place of identity.json."""
    config = small_config(tmp_path, [{"name": "list", "path": str(tmp_path / "list.csv")}])
    (tmp_path / "list.csv").write_text("url,caption\nhttp://127.0.0.1/a.jpg,A dog.\n")
    output = Path(config.output)
    output.mkdir()
    stored = config.model_dump(mode="json", exclude={"captions": {"min_words"}})
    (output / "data.yaml").write_text(yaml.safe_dump(stored))
    (output / "config.sha256").write_text("0" * 64)
    counts = {"input_rows": 1, "kept": 1, "rejected": {}}
    manifest = {"files": [], "rejects": [], "counts": counts, "generation": 0}
    (output / "manifest.json").write_text(json.dumps(manifest))
    run(config)
    assert "finished before" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"chunk_rows: .*holds a dataset made with 10, here"):
        run(config.model_copy(update={"chunk_rows": 3}))
    assert difference(stored, config, FREE_FIELDS, "data.yaml") is None
