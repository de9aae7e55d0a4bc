"""A compiled model meets one shape of texts in a whole run, whatever the batches hold."""

import numpy as np
import pytest
import torch
from tests_support import tiny_config

import caft
from caft.config import load_config
from pipelines.train.config import TrainConfig
from pipelines.train.ingest import Batch
from pipelines.train.inputs import Sender

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return caft.create_model(tiny_config())


def batches(model, images, count, correlated=False):
    """Texts of random lengths; where `correlated`, those of an image are alike, as a caption's."""
    rng = np.random.default_rng(0)
    text, parts = model.config.text, 6
    longest = text.context_length
    for _ in range(count):
        own = rng.integers(2, longest + 1, (images, 1 if correlated else parts))
        lengths = np.broadcast_to(own, (images, parts))
        tokens = torch.zeros(images, parts, longest, dtype=torch.long)
        places = torch.arange(longest)
        ends = torch.from_numpy(lengths.copy())[..., None] - 1
        tokens[places.expand_as(tokens) < ends] = 1
        tokens[places.expand_as(tokens) == ends] = text.vocab_size - 1
        yield Batch(torch.zeros(images, 3, 8, 8, dtype=torch.uint8), None, tokens)


def sender(model, **scaling):
    names = [f"scaling.{name}={value}" for name, value in scaling.items()]
    config = load_config(
        TrainConfig, None, ["dataset=none", "output=none", "model=caft_xs", *names]
    )
    return Sender(model, config, CPU)


@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize("micro_batch", [None, 64])
def test_all_batches_of_a_run_have_the_rows_of_the_first(model, correlated, micro_batch):
    made = sender(model, compile=True, micro_batch=micro_batch or "null")
    drawn = list(batches(model, 256, 150, correlated))
    made.prepare(drawn[0])
    shapes = {tuple(text.tokens.shape) for batch in drawn for text in made.send(batch).texts}
    assert len(shapes) == 1
    (rows, length), most = *shapes, max(made.send(batch).tokens for batch in drawn)
    assert rows * length * len(made.send(drawn[0]).texts) < 1.6 * most


def test_no_batch_compiles_anything_again(model):
    made = sender(model, compile=True)
    drawn = list(batches(model, 64, 20))
    made.prepare(drawn[0])
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    encode = torch.compile(model.encode_text, fullgraph=True, dynamic=False, backend=backend)
    with torch.no_grad():
        for batch in drawn:
            (texts,) = made.send(batch).texts
            found = encode(texts)
    assert len(graphs) == 1
    with torch.no_grad():
        due = model.encode_text(drawn[-1].tokens)
    torch.testing.assert_close(found.parts, due.parts, rtol=1e-4, atol=1e-5)


def test_a_batch_that_outgrows_the_rows_is_sent_all_the_same(model):
    made = sender(model, compile=True)
    short, long = next(batches(model, 64, 1)), next(batches(model, 256, 1))
    made.prepare(short)
    assert made.send(long).tokens == int((long.tokens.argmax(dim=-1) + 1).sum())
