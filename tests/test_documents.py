"""YAML and JSON from strangers: each kind of trap is one line, in bounded time and memory."""

import json
import time
import tracemalloc

import pytest
from tests_support import tiny_config

import caft
from caft.checkpoint import load_weights, read_manifest, save_weights, write_manifest
from caft.checkpoint.export import export
from caft.config import read_yaml
from caft.documents import parse_yaml
from caft.errors import CAFTError, CheckpointError, ConfigError
from caft.overrides import apply_override


def repeated(pattern: str, first: str) -> str:
    """Nine lines, each of which names the one before it nine times."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{n}: &a{n} " + pattern.format(",".join([f"*a{n - 1}"] * 9)) for n in range(1, 10)]
    return "\n".join(lines)


TRAPS = {
    "merge keys": (repeated("{{<<: [{}]}}", "{k: 1}"), "merge keys repeat"),
    "aliases": (repeated("[{}]", "[x]"), "merge keys repeat"),
    "brackets": ("a: " + "[" * 20_000, "64 deep"),
    "closed brackets": ("a: " + "[" * 20_000 + "]" * 20_000, "64 deep"),
    "braces": ("{a: " * 20_000, "64 deep"),
    "dashes": ("- " * 20_000 + "x", "64 deep"),
    "aliases in a chain": (
        "a0: &a0 [1]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 100)),
        "64 deep",
    ),
    "inside itself": ("a: &a [*a]", "stands inside"),
    "twice": ("seed: 1\nname: x\nseed: 2", r"key 'seed' stands twice .*line 3"),
    "twice in a section": ("image: {width: 1, 'width': 2}", "key 'width' stands twice"),
    "digits": ("a: " + "9" * 5_000, "number of 5,000"),
    "base sixty": ("a: " + "1:" * 50_000 + "1", "a number of"),
    "no date": ("a: 2026-99-99", "not valid YAML"),
    "no boolean": ("a: !!bool x", "not valid YAML"),
}


@pytest.fixture
def folder(tmp_path):
    save_weights(caft.create_model(tiny_config()), tmp_path / "final")
    write_manifest(tmp_path / "final", {})
    return tmp_path / "final"


def one_line(call, error: type[CAFTError], match: str) -> None:
    """`call` fails with one line, within seconds and some megabytes."""
    begun = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(error, match=match) as caught:
            call()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert time.monotonic() - begun < 60  # a freeze, not a slow machine
    assert peak < 2**28


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_is_one_line_wherever_yaml_is_read(trap, folder, tmp_path):
    text, match = TRAPS[trap]
    one_line(lambda: apply_override({}, "a=" + text), ConfigError, match)
    path = tmp_path / "x.yaml"
    path.write_text(text)
    one_line(lambda: read_yaml(path), ConfigError, rf"x\.yaml: .*{match}")
    one_line(lambda: caft.create_model(path), ConfigError, rf"x\.yaml: .*{match}")
    (tmp_path / "train.yaml").write_text(text)  # of a run, which an export takes as its recipe
    one_line(lambda: export(folder, tmp_path / "hub"), CheckpointError, rf"train\.yaml: .*{match}")
    (folder / "config.yaml").write_text(text)
    write_manifest(folder, {})
    one_line(lambda: caft.load_model(folder), ConfigError, rf"config\.yaml: .*{match}")


def test_a_trap_in_the_metadata_of_a_single_file(tmp_path):
    from safetensors.torch import save_file

    model = caft.create_model(tiny_config())
    text, match = TRAPS["merge keys"]
    save_file(model.state_dict(), tmp_path / "a.safetensors", {"caft_config": text})
    one_line(lambda: caft.load_model(tmp_path / "a.safetensors"), CheckpointError, match)


def test_aliases_and_merge_keys_of_ordinary_size_are_read():
    text = "a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, x: 3}\nc: [*a, *a]\n1: one\n'1': two"
    a = {"x": 1, "y": [1, 2]}
    expected = {"a": a, "b": {**a, "x": 3}, "c": [a, a], 1: "one", "1": "two"}
    assert parse_yaml(text, "here", ConfigError) == expected


def test_long_files_and_files_based_on_themselves(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: " + "x" * 5_000_000)
    one_line(lambda: read_yaml(path), ConfigError, r"x\.yaml: longer than 4 MiB")
    path.write_text(f"base: {path}")
    one_line(lambda: caft.create_model(path), ConfigError, "based on itself")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "[]",
        "null",
        "{}",
        '"text"',
        '{"a": ' + "9" * 5_000 + "}",
        '{"format": "caft-checkpoint", "version": 1}',
        '{"format": "caft-checkpoint", "version": 1, "files": ["model.safetensors"]}',
        '{"format": "caft-checkpoint", "version": 1, "files": {"model.safetensors": 3}}',
        '{"format": "caft-checkpoint", "version": 1, "files": {"config.yaml": {"bytes": "1"}}}',
        '{"format": "caft-checkpoint", "version": 9, "files": {}}',
        '{"format": "caft-checkpoint", "version": 1, "files": {}}',
    ],
)
def test_a_manifest_of_another_shape_is_a_damaged_one(folder, text):
    (folder / "manifest.json").write_text(text)
    one_line(lambda: caft.load_model(folder), CheckpointError, r"manifest\.json: ")


def test_a_manifest_that_names_files_elsewhere(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["files"].pop("config.yaml")
    del manifest["manifest_sha256"]  # as whoever wrote it could make anew
    for name in ("../secret", "/etc/hostname"):
        files = {**manifest["files"], name: entry}
        (folder / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
        one_line(lambda: read_manifest(folder), CheckpointError, "outside the folder")


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 5_000 + b'],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,' + b"9" * 5_000 + b"]}}",
        b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
        b"[" * 100_000,
        b"{}",
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("claimed", [None, 2**63, 2**40, 0])
def test_headers_of_safetensors_files(tmp_path, header, claimed):
    file = tmp_path / "a.safetensors"
    size = len(header) if claimed is None else claimed
    file.write_bytes(size.to_bytes(8, "little") + header + bytes(4))
    one_line(lambda: caft.load_model(file), CheckpointError, r"a\.safetensors: ")
    model = caft.create_model(tiny_config())
    one_line(lambda: load_weights(model, file), CheckpointError, r"a\.safetensors: ")
