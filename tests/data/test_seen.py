"""What the page and the manifest say of a source's texts, from rows of every kind."""

import json

import pytest
from sources_support import image_bytes, read_rows, source, tar_bytes, write

from pipelines.data.captions import split_captions
from pipelines.data.config import CaptionConfig
from pipelines.data.seen import Seen, script_of
from pipelines.data.sources import read_container


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("A dog.", "Latin"),
        ("Ein Café über der Straße", "Latin"),
        ("Собака бежит, dog", "Cyrillic"),
        ("犬が走る", "Kana"),
        ("一只狗在跑", "Han"),
        ("كلب يجري", "Arabic"),
        ("12 - 34", "no letters"),
        ("\u10d0\u10d1", "another"),
    ],
)
def test_the_script_of_a_text(text, script):
    assert script_of(text) == script


@pytest.mark.parametrize("kind", ["list", "tar"])
def test_a_kept_row_is_shown_beside_its_cells(tmp_path, kind):
    cell = '["A dog &amp; a cat. They run.", "Two."]'
    if kind == "list":
        lines = [json.dumps({"url": f"http://a/{n}.jpg", "text": cell}) for n in range(3)]
        rows = read_rows(source(write(tmp_path / "a.jsonl", "\n".join(lines))))
    else:
        members = [
            (f"{n}.{ending}", data)
            for n in range(3)
            for ending, data in (("png", image_bytes()), ("txt", cell.encode()))
        ]
        tar = write(tmp_path / "a.tar", tar_bytes(members))
        rows = list(read_container(str(tar), source(tar)))
    rows[0]["reason"] = "too_small"
    seen = Seen()
    for row in rows:
        seen.fetched({"data": b"12345"})
        split_captions(row, CaptionConfig())
        seen.add(row)
    receipt = seen.receipt()
    name = "text" if kind == "list" else "txt"
    assert receipt["captions"] == {name: 3}
    assert receipt["notes"] == {"entities": 3}
    assert receipt["scripts"] == {"Latin": 3}
    assert receipt["lengths"] == {"32": 3, "4": 3}
    assert receipt["fetched_bytes"] == 15
    assert receipt["sample"]["url"] == rows[1]["url"]
    assert receipt["sample"]["cells"] == [[name, cell]]
    assert receipt["sample"]["captions"] == [[name, ["A dog & a cat", "They run", "Two"]]]
