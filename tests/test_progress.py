"""Progress lines: with share and time left where the total is known, without them elsewhere."""

from pipelines.progress import Progress


def test_a_known_total_gives_share_and_time(capsys):
    progress = Progress("work", 40, "rows", 0.0)
    progress.update(20, refused=3)
    progress.update(20)
    half, whole = capsys.readouterr().out.splitlines()
    assert half.startswith("work 20/40 rows 50% ")
    assert "ETA" in half
    assert half.endswith("refused 3")
    assert whole.startswith("work 40/40 rows 100% ")
    assert " in 0 s" in whole


def test_an_unknown_total_gives_neither(capsys):
    progress = Progress("work", None, "rows", 0.0, done=5)
    progress.update(20)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("work 25 rows ")
    assert "%" not in line
    assert "ETA" not in line
