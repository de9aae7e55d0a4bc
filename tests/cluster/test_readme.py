"""The commands of cluster/README.md: flags that exist, files that are there, recipes that load."""

import re
import shlex

import pytest
from manifests import REPOSITORY
from ray.dashboard.modules.job.cli import job_cli_group
from ray.scripts.scripts import cli as ray_cli

from pipelines.submit.__main__ import STAGES, parse
from pipelines.submit.chain import Step, connect_steps, parse_step, read_chain

README = REPOSITORY / "cluster" / "README.md"


def commands() -> list[list[str]]:
    blocks = re.findall(r"```\n(.*?)```", README.read_text(), re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    generated = (re.sub(r"\$\(.*?\)", "GENERATED", line) for line in lines)
    return [words for line in generated if (words := shlex.split(line, comments=True))]


def starting_with(*words: str) -> list[list[str]]:
    return [command for command in commands() if command[: len(words)] == list(words)]


@pytest.mark.parametrize("command", starting_with("python", "-m", "pipelines.submit"), ids=" ".join)
def test_submit_takes_its_command(command, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    args = parse(command[3:])
    assert args.cluster
    if args.command in STAGES:
        first = Step(args.command, args.words[0], tuple(args.words[1:]))
        connect_steps([first, *map(parse_step, args.then)])
    elif args.command == "chain":
        stages = [step.stage for step in connect_steps(read_chain(args.words[0]))]
        assert stages == ["data", "train", "evaluate"]


@pytest.mark.parametrize("command", starting_with("ray"), ids=" ".join)
def test_ray_takes_its_command(command):
    group, words = (job_cli_group, command[2:]) if command[1] == "job" else (ray_cli, command[1:])
    group.commands[words[0]].make_context(words[0], words[1:])


def test_files_are_there():
    named = [
        command[place + 1]
        for command in commands()
        for place, word in enumerate(command)
        if word in ("-f", "-k", "up", "down", "dashboard") and command[0] != "ssh"
    ]
    assert len(named) >= 9
    for name in named:
        assert (REPOSITORY / name).exists(), name
    links = re.findall(r"\]\(([\w./]+)\)", README.read_text())
    assert all((README.parent / link).exists() for link in links)


def test_every_command_is_of_a_kind_that_is_checked_or_known():
    known = {"python", "ray", "docker", "kubectl", "kustomize", "helm", "export", "ssh", "umask"}
    assert {command[0] for command in commands()} == known


def test_targets_of_the_image_exist():
    dockerfile = (REPOSITORY / "cluster" / "Dockerfile").read_text()
    for command in starting_with("docker", "build"):
        assert f"AS {command[command.index('--target') + 1]}\n" in dockerfile
