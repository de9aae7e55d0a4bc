"""What is logged as the total is what backward got: for every control, for weights, and for a term
that only this file knows."""

import pytest
import torch
import torch.distributed as dist
from pydantic import Field
from tests_support import random_images, tiny_config, tiny_controls

import caft
from caft.config import LossConfig, LossWeights, load_config
from caft.losses import caft_loss, weighted_loss
from pipelines.train import distributed
from pipelines.train.config import TrainConfig
from pipelines.train.distributed import TrainingModel
from pipelines.train.ingest import Batch
from pipelines.train.inputs import Sender, sent_ahead
from pipelines.train.step import compute_gradients
from pipelines.train.telemetry import Telemetry, losses_of

STEPS = 2
WEIGHTED = {"losses": LossConfig(weights=LossWeights(part_text_conditioned=0.25, whole=3.0))}


class WeightsWithAnother(LossWeights):
    spread: float = Field(0.5, ge=0)


def with_another_term(images, texts, model, *args, **options):
    """`caft_loss` as a fourth term in it would make it."""
    loss = caft_loss(images, texts, model, *args, **options)
    terms = loss.terms | {"spread": 10 * images.fine.var()}
    return weighted_loss(terms, model.config.losses.weights)


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Engine:
    """The calls of DeepSpeed's engine that a step makes, with what backward was given."""

    device = torch.device("cpu")

    def __init__(self, trained):
        self._trained, self.differentiated = trained, []

    def __call__(self, *inputs):
        return self._trained(*inputs)

    def zero_optimization(self):
        return False

    def backward(self, loss):
        self.differentiated.append(loss.item())
        loss.backward()


CASES = {**tiny_controls(), "weighted": tiny_config(**WEIGHTED), "another": tiny_config()}


@pytest.mark.parametrize("name", CASES)
def test_the_total_that_is_logged_is_what_backward_got(name, one_process, monkeypatch):
    config = CASES[name]
    if name == "another":
        monkeypatch.setattr(distributed, "caft_loss", with_another_term)
        losses = config.losses.model_copy(update={"weights": WeightsWithAnother()})
        config = config.model_copy(update={"losses": losses})
    model = caft.create_model(config)
    train = load_config(
        TrainConfig,
        None,
        ["dataset=none", "output=none", "global_batch=4", "block_size=4", "ingest.lanes=4"],
    )
    trained = TrainingModel(model, 4)
    engine = Engine(trained)
    telemetry = Telemetry(train, trained, steps_per_epoch=10, device=torch.device("cpu"))
    cpu = torch.device("cpu")
    on_host = iter([batch(model, n) for n in range(STEPS)])
    batches = telemetry.watch(sent_ahead(on_host, Sender(model, train, cpu), cpu))
    for step, one in enumerate(batches):
        telemetry.add(compute_gradients(engine, trained, one, step, train), None)
    logged = losses_of(telemetry.take(STEPS, lr=0.1))
    assert logged["loss/total"] == pytest.approx(sum(engine.differentiated) / STEPS)
    weights = dict(config.losses.weights)
    named = {key.removeprefix("loss/"): value for key, value in logged.items()}
    total = named.pop("total")
    assert sum(weights[term] * value for term, value in named.items()) == pytest.approx(total)
    assert ("spread" in named) == (name == "another")
    assert ("whole" in named) == config.losses.has_whole
    assert ("part_text_conditioned" in named) == config.losses.parts


def test_the_three_named_terms_are_zero_where_they_are_left_out():
    loss = weighted_loss({"whole": torch.tensor(2.0)}, LossWeights(whole=3.0))
    assert (loss.part_text_conditioned, loss.part_multi_positive) == (0, 0)
    assert (loss.whole, loss.total) == (2, 6)
    assert list(loss.terms) == ["whole"]


def batch(model, n: int) -> Batch:
    chunks = model.config.text.chunks
    images = random_images(4, seed=n)
    tokens = torch.randint(1, 1000, (4, chunks + model.config.losses.parts, 8))
    tokens[:, :, 5] = 49407
    return Batch(images, model.superpixel_labels(images), tokens)
