"""The command `caft`, recipes by name, and what a wheel of this repository holds."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from caft.config import RECIPES
from caft.errors import ConfigError
from caft.extras import how_to_install
from pipelines.__main__ import COMMANDS, STAGES, main
from pipelines.data.config import DataConfig
from pipelines.recipes import load_recipe, recipe_names
from pipelines.submit.chain import Step, connect_steps

ROOT = Path(__file__).parents[1]
OUTPUTS = ["dataset=/data/set", "output=/data/run"]


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "pipelines", *words]
    return subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)


def test_help_shows_the_stages_in_their_order(capsys):
    for argv in ([], ["--help"]):
        assert main(argv) == 0
        shown = re.findall(r"^  (\w+) ", capsys.readouterr().out, re.MULTILINE)
        assert shown == list(COMMANDS)
        assert tuple(shown[: len(STAGES)]) == STAGES
    assert main(["evalute"]) == 2
    assert "no command 'evalute'; the nearest one is 'evaluate'" in capsys.readouterr().err


def test_a_stage_takes_a_recipe_by_name_from_anywhere(tmp_path):
    done = run("train", "caft_b_3m", *OUTPUTS, "--print-config", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "dataset: /data/set" in done.stdout
    wrong = run("train", "caft_b_3n", *OUTPUTS, folder=tmp_path)
    assert wrong.returncode == 2
    assert "caft_b_3n: neither a file nor a recipe of train; the nearest one is" in wrong.stderr


def test_arguments_reach_the_command_unchanged(tmp_path):
    done = run("data", "verify", "nowhere", folder=tmp_path)
    assert done.returncode == 2
    assert re.match(r"DataError: \S*nowhere: no manifest.json", done.stderr)
    done = run("describe", "caft_xs", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "caft_xs" in done.stdout


def test_every_recipe_is_listed_with_what_it_is(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    for stage in STAGES:
        assert recipe_names(stage)
        for name in recipe_names(stage):
            assert re.search(rf"^  {name} +\w", listed, re.MULTILINE), name


def test_a_file_goes_before_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("sources: [{name: mine, path: a.csv}]\noutput: /out\n")
    assert load_recipe(DataConfig, "demo").sources[0].name == "mine"
    Path("demo").unlink()
    assert load_recipe(DataConfig, "demo").sources[0].name != "mine"
    with pytest.raises(ConfigError, match="other/demo: no such configuration file"):
        load_recipe(DataConfig, "other/demo")


def test_a_chain_keeps_the_names_of_recipes():
    steps = [Step("data", "dreamlip_cc3m", ("output=/set",)), Step("train", "caft_b_3m", ())]
    assert [step.config for step in connect_steps(steps)] == ["dreamlip_cc3m", "caft_b_3m"]


def test_a_missing_package_is_one_line(monkeypatch, capsys):
    def missing(*args, **options):
        raise ModuleNotFoundError("No module named 'ray'", name="ray")

    monkeypatch.setattr("runpy.run_module", missing)
    with pytest.raises(SystemExit) as ended:
        main(["data", "demo"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "caft data: the package ray is not installed; "
        "pip install -e '.[pipelines]' -c constraints.txt\n"
    )


@pytest.mark.parametrize(
    "command", ["caft.scaling_law runs.csv --error loss", "caft.superpixels fit photographs"]
)
def test_tools_of_the_library_say_what_they_lack(command):
    """A library without the stages' packages: one line and no traceback."""
    module, *arguments = command.split()
    program = (
        "import runpy, sys\n"
        "for name in ('jinja2', 'pyarrow'): sys.modules[name] = None\n"
        f"sys.argv = {[module, *arguments]!r}\n"
        f"runpy.run_module({module!r}, run_name='__main__')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert re.fullmatch(
        rf"{module}: the package \w+ is not installed; pip install -e '\.\[pipelines\]' "
        r"-c constraints\.txt\n",
        run.stderr,
    )


def test_an_installed_wheel_names_the_distribution(monkeypatch, tmp_path):
    monkeypatch.setattr("caft.extras.CHECKOUT", tmp_path)
    assert how_to_install("language") == "pip install 'caft-image-text[language]'"


IMPORT = """
import importlib, pkgutil, sys
sys.path.insert(0, {target!r})
blocked = set({blocked!r})
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"blocked: {{name}}")
sys.meta_path.insert(0, Blocked())
import caft
assert caft.__file__.startswith({target!r}), caft.__file__
for name in caft.__all__:
    getattr(caft, name)
caft.create_model("caft_xs")
print(caft.config.RECIPES)
"""


def test_a_wheel_has_recipes_inside_and_imports_with_a_dozen_packages(tmp_path):
    pytest.importorskip("hatchling", reason="needs pip install -e .[test]")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = tmp_path.glob("caft_image_text-*.whl")
    target = tmp_path / "target"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    placed = {path.name for path in target.iterdir() if not path.name.endswith(".dist-info")}
    assert placed == {"bin", "caft", "pipelines"}
    assert (target / "bin" / "caft").is_file()
    assert (target / "caft" / "py.typed").is_file()
    inside = target / "caft" / "configs"
    stored = {path.relative_to(inside) for path in inside.rglob("*.yaml")}
    assert stored == {path.relative_to(RECIPES) for path in RECIPES.rglob("*.yaml")}

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [re.split(r"[\[><=]", one)[0] for one in project["dependencies"]]
    assert len(needed) <= 12
    others = [re.split(r"[\[><=]", one)[0] for one in project["optional-dependencies"]["pipelines"]]
    program = IMPORT.format(target=str(target), blocked=[*others, "fsspec", "grpc"])
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(inside)
