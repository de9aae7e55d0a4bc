"""Chains of stages: how they are written, what one hands to the next, what is wrong with them."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from caft.errors import ConfigError
from pipelines.submit.chain import (
    STAGES,
    THEN,
    Step,
    chain_arguments,
    connect_steps,
    parse,
    parse_step,
    read_chain,
)

CONFIGS = Path(__file__).parents[2] / "configs"
DATA = Step("data", f"{CONFIGS}/data/demo.yaml", ("output=/shared/set",))
TRAIN = Step("train", f"{CONFIGS}/train/demo.yaml", ("output=/shared/run",))
EVALUATE = Step("evaluate", f"{CONFIGS}/evaluate/scenes.yaml", ("output=/shared/scores",))


def test_outputs_of_one_are_inputs_of_the_next():
    own = (*EVALUATE.overrides, "benchmarks.0.dataset={data.output}")
    _, train, evaluate = connect_steps([DATA, TRAIN, Step("evaluate", EVALUATE.config, own)])
    assert train.load().dataset == "/shared/set"
    assert evaluate.load().checkpoint == "/shared/run/final"
    assert evaluate.load().benchmarks[0].dataset == "/shared/set"


def test_what_a_step_sets_itself_stays():
    train = Step("train", TRAIN.config, (*TRAIN.overrides, "dataset=s3://other/set"))
    assert connect_steps([DATA, train])[1].load().dataset == "s3://other/set"


def test_an_output_that_no_stage_makes_is_named():
    step = Step("train", TRAIN.config, ("dataset={data.output}",))
    with pytest.raises(ConfigError, match=r"train: dataset=\{data.output\}: no data stage comes"):
        connect_steps([step])


def test_a_wrong_key_is_named_before_anything_runs():
    with pytest.raises(ConfigError, match=r"demo.yaml.*epoch"):
        connect_steps([DATA, Step("train", TRAIN.config, ("epoch=3",))])


def test_steps_on_the_command_line():
    step = parse_step(
        "train:configs/t.yaml,output=s3://b/run,benchmarks=[a,b],scaling.num_workers=8"
    )
    assert step == Step(
        "train", "configs/t.yaml",
        ("output=s3://b/run", "benchmarks=[a,b]", "scaling.num_workers=8"),
    )  # fmt: skip
    assert parse_step("data:x.yaml") == Step("data", "x.yaml")
    for wrong in ("train", "x.yaml", "trains:x.yaml", "train:", "train:output=1"):
        with pytest.raises(ConfigError, match=r"--then .*STAGE:CONFIG.*data, train, evaluate"):
            parse_step(wrong)


def test_steps_in_a_file(tmp_path):
    path = tmp_path / "chain.yaml"
    path.write_text(
        yaml.safe_dump({"stages": [{"stage": "data", "config": "d.yaml", "set": ["output=/x"]}]})
    )
    assert read_chain(str(path)) == [Step("data", "d.yaml", ("output=/x",))]
    path.write_text("stages: [{stage: dat, config: d.yaml}]")
    with pytest.raises(ConfigError, match=r"chain.yaml.*stages.0.stage"):
        read_chain(str(path))


words = st.text(min_size=1).filter(lambda text: text != THEN)
steps = st.builds(Step, st.sampled_from(STAGES), words, st.lists(words).map(tuple))


@given(st.lists(steps, min_size=2, max_size=4))
def test_a_chain_is_read_back_as_it_was_written(chain):
    assert parse(chain_arguments(chain)[1:]) == chain


def test_a_command_line_without_steps_is_refused():
    with pytest.raises(ConfigError, match="must be STAGE CONFIG"):
        parse(["data", "d.yaml", THEN])
