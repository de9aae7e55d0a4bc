"""A data engineer with a list of URLs: README's own file and commands, from a fresh clone."""

import csv
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from user_support import User

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_a_list_becomes_a_dataset_that_is_verified_and_exported(sample, tmp_path):
    user = User(tmp_path)
    mine = yaml.safe_load(user.block("README.md", "# mine.yaml", "yaml"))
    (source,) = mine["sources"]
    columns = [source["url_column"], *source["caption_columns"]]
    with open(sample.folder / "scenes_train.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    listed = user.clone / "mine.csv"
    with open(listed, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        for row in rows:
            writer.writerow([row["Image Path"], "a scene", row["longSV_captions"]])
    output = tmp_path / "mine"
    mine["output"], source["path"] = str(output), str(listed)
    # The only thing that a real list does not need: its server is this machine.
    mine["download"] = {"allow_private_hosts": ["127.0.0.1"], "retries": 0, "timeout_s": 3}
    (user.clone / "mine.yaml").write_text(yaml.safe_dump(mine))

    estimate, data, *_ = user.commands("README.md", "pipelines.data estimate mine.yaml")
    assert "rows" in user.run(estimate)
    printed = user.run(data)
    manifest = json.loads((output / "manifest.json").read_text())
    assert f"data: finished: {output}" in printed
    kept, rejected = (int(n) for n in re.findall(r"= kept (\d+) \+ rejected (\d+)", printed)[0])
    assert kept + rejected == len(rows)
    assert manifest
    parts = sorted(output.glob("part-*.parquet"))
    assert sum(pq.read_metadata(part).num_rows for part in parts) == kept
    assert "finished before" in user.run(data)
    assert (output / "stats.html").exists()
    for command in user.commands("docs/data.md", "pipelines.data verify"):
        if re.search(r"pipelines\.data (verify|retry|export) ", command):
            user.run(command.replace("s3://bucket/", f"{tmp_path}/"))
    assert list(Path(output).glob("rejects/part-*.parquet"))
