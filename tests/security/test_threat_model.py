"""Every line of the threat model has a test, and every test of attacks has a line."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (?!attack )[^-].*\|$", PAGE, re.MULTILINE)


def named_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {
        n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")
    }


def test_every_line_names_a_test_that_is_there():
    assert len(ROWS) > 25
    for row in ROWS:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row)
        assert named, row
        for file, test in named:
            assert not test or test in named_in(ROOT / file), row


def test_every_test_of_an_attack_has_a_line():
    for file in Path(__file__).parent.glob("test_*.py"):
        tried = {name for name in named_in(file) if not re.search("accepted|line", name)}
        missing = [name for name in tried if f"::{name}`" not in PAGE]
        assert not missing, f"{file.name}: {missing}"
