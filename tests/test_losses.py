"""The loss as a function: block structure, workers, gradients, seeds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests_support import tiny_config, tiny_controls

import caft
from caft.losses import caft_loss, draw_negatives, own_block, select_sub_captions
from caft.model import ImageFeatures, TextFeatures


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return caft.create_model(tiny_config())


def random_features(model, count, parts, seed=0):
    torch.manual_seed(seed)
    dim = model.config.embed_dim
    rand = lambda *shape: torch.randn(*shape, dtype=torch.float32, requires_grad=True)  # noqa: E731
    images = ImageFeatures(
        whole=rand(count, dim),
        fine=rand(count, 6, dim),
        fine_cls=rand(count, dim),
        coarse=rand(count, 3, dim),
        assignments=[],
        superpixels=torch.zeros(count, 1, 1),
    )
    return images, TextFeatures(rand(count, parts, dim), rand(count, dim))


def rows_of(images, rows):
    return ImageFeatures(
        images.whole[rows],
        images.fine[rows],
        images.fine_cls[rows],
        images.coarse[rows],
        [],
        images.superpixels[rows],
    )


def plain_loss(model, images, texts, negatives, block):
    """The three terms with explicit loops over pairs, straight from their definition."""
    count, parts, _ = texts.parts.shape
    part_scale, whole_scale = model.part_log_scale[0].exp(), model.whole_log_scale[0].exp()
    cosine = torch.nn.functional.cosine_similarity
    terms = torch.zeros(3)
    part_bias, whole_bias = model.part_bias[0], model.whole_bias[0]
    for i in range(count):
        keys, values = model.attention_pool.keys_values(images.fine[i : i + 1])
        for b in range(count // block):
            reader = b * block + i % block
            chosen = [(reader, k) for k in range(parts)]
            for j in range(b * block, (b + 1) * block):
                if j != reader:
                    chosen.append((j, int(negatives[reader, j if j < reader else j - 1])))
            for j, k in chosen:
                sub = texts.parts[j, k]
                pooled = model.attention_pool(
                    model.attention_pool.queries(sub[None, None]), keys, values
                )[0, 0]
                logit = part_scale * cosine(pooled, sub, dim=0) + part_bias
                sign = 1 if j == i else -1
                terms[0] -= torch.nn.functional.logsigmoid(sign * logit) / len(chosen)
            for j in range(b * block, (b + 1) * block):
                sign = 1 if j == i else -1
                for k in range(parts):
                    logit = part_scale * cosine(images.fine_cls[i], texts.parts[j, k], dim=0)
                    logit = logit + part_bias
                    terms[1] -= torch.nn.functional.logsigmoid(sign * logit) / (block * parts)
                logit = whole_scale * cosine(images.whole[i], texts.whole[j], dim=0)
                terms[2] -= torch.nn.functional.logsigmoid(sign * (logit + whole_bias)) / block
    return terms / (count // block)


@pytest.mark.parametrize(("count", "block"), [(4, 4), (6, 3), (8, 2)])
def test_loss_is_its_definition(model, count, block):
    images, texts = random_features(model, count, parts=3)
    negatives = draw_negatives(count, 3, seed=1, block=count)
    loss = caft_loss(images, texts, model, negatives, block_size=block)
    expected = plain_loss(model, images, texts, negatives, block)
    ours = torch.stack([loss.part_text_conditioned, loss.part_multi_positive, loss.whole])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("control", ["caft", "caft_softmax"])
def test_shares_of_workers_add_up_to_the_whole_batch(workers, control):
    model = caft.create_model(tiny_controls()[control])
    images, texts = random_features(model, 8, parts=3)
    whole = caft_loss(images, texts, model, block_size=4, seed=5).total
    share = 8 // workers
    shares = [
        caft_loss(
            rows_of(images, slice(r * share, (r + 1) * share)),
            texts,
            model,
            block_size=4,
            first_image=r * share,
            seed=5,
            all_whole_images=images.whole,
        ).total
        for r in range(workers)
    ]
    torch.testing.assert_close(sum(shares), whole, rtol=1e-5, atol=1e-5)
    leaves = [images.whole, images.fine, texts.parts, texts.whole]
    for ours, expected in zip(
        torch.autograd.grad(sum(shares), leaves), torch.autograd.grad(whole, leaves), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_softmax_is_clip_s_cross_entropy_whatever_the_block_size():
    model = caft.create_model(tiny_controls()["clip_softmax"])
    images, texts = random_features(model, 6, parts=1)
    cosine = torch.nn.functional.cosine_similarity
    logits = cosine(images.whole[:, None], texts.whole[None], dim=-1) / 0.07
    own = torch.arange(6)
    entropies = [torch.nn.functional.cross_entropy(l, own) for l in (logits, logits.T)]  # noqa: E741
    for block in (2, 6):
        loss = caft_loss(images, texts, model, block_size=block)
        torch.testing.assert_close(loss.total, sum(entropies) / 2)
        assert loss.part_text_conditioned == loss.part_multi_positive == 0


def test_softmax_asks_for_the_other_workers_images():
    model = caft.create_model(tiny_controls()["clip_softmax"])
    images, texts = random_features(model, 6, parts=1)
    with pytest.raises(ValueError, match="as many images, got 3; pass all_whole_images"):
        caft_loss(rows_of(images, slice(3)), texts, model)


def test_a_loss_that_is_left_out_is_zero_and_the_others_are_as_before(model):
    images, texts = random_features(model, 4, parts=3)
    both = caft_loss(images, texts, model, seed=2)
    no_parts = caft.create_model(tiny_controls()["caft_no_parts"])
    left = caft_loss(images, texts, no_parts, seed=2)
    assert left.part_text_conditioned == left.part_multi_positive == 0
    torch.testing.assert_close(left.total, both.whole)


def test_entries_of_other_blocks_are_not_asked_for(model):
    images, texts = random_features(model, 6, parts=3)
    whole = draw_negatives(6, 3, seed=1, block=6)  # (6, 5)
    within = own_block(whole, 6, 3)
    others = [[j for j in range(6) if j != i] for i in range(6)]
    for i in range(6):
        mates = [n for n, j in enumerate(others[i]) if j // 3 == i // 3]
        assert within[i].tolist() == whole[i, mates].tolist()
    ours = caft_loss(images, texts, model, within, block_size=3).total
    torch.testing.assert_close(ours, caft_loss(images, texts, model, whole, block_size=3).total)
    with pytest.raises(ValueError, match=r"negatives: \(6, 4\) given, \(6, 5\) or \(6, 2\)"):
        caft_loss(images, texts, model, whole[:, :4], block_size=3)


@given(seed=st.integers(0, 99))
def test_the_order_of_a_batch_changes_nothing(model, seed):
    """Captions and images permuted together, each with its own negatives."""
    count, parts = 6, 3
    images, texts = random_features(model, count, parts, seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)
    chosen = torch.randint(parts, (count, count), generator=generator)  # of j for i
    plain = caft_loss(images, texts, model, without_diagonal(chosen))
    permuted = caft_loss(
        rows_of(images, order),
        TextFeatures(texts.parts[order], texts.whole[order]),
        model,
        without_diagonal(chosen[order][:, order]),
    )
    for name in ("part_text_conditioned", "part_multi_positive", "whole"):
        torch.testing.assert_close(getattr(permuted, name), getattr(plain, name))


def without_diagonal(square):
    count = len(square)
    return square[~torch.eye(count, dtype=torch.bool)].view(count, count - 1)


def test_memory_grows_with_the_block_and_not_with_the_batch(model):
    """What autograd keeps between forward and backward, per image, for four times the captions."""

    def saved_bytes(count):
        images, texts = random_features(model, count, parts=4)
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = caft_loss(rows_of(images, slice(0, 8)), texts, model, block_size=8)
        assert torch.isfinite(loss.total)
        return sum(sizes.values())

    pooled_bytes = 8 * (8 + 3) * model.config.embed_dim * 4  # of one pair of blocks
    growth = saved_bytes(32) - saved_bytes(8)
    features_bytes = 24 * 5 * model.config.embed_dim * 4  # of 24 more captions, once
    assert growth < 8 * features_bytes + 3 * pooled_bytes


def test_a_batch_that_is_no_multiple_of_the_block_is_refused(model):
    images, texts = random_features(model, 6, parts=2)
    with pytest.raises(ValueError, match="not a multiple of block_size 4"):
        caft_loss(images, texts, model, block_size=4)


def test_matched_pairs_have_a_lower_loss_than_mismatched_ones(model):
    images, _texts = random_features(model, 6, parts=2)
    matched = TextFeatures(images.fine_cls[:, None].expand(-1, 2, -1), images.whole)
    shifted = TextFeatures(matched.parts.roll(1, 0), matched.whole.roll(1, 0))
    assert caft_loss(images, matched, model).whole < caft_loss(images, shifted, model).whole


@given(
    blocks=st.integers(1, 3),
    block=st.integers(2, 6),
    parts=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_every_selection_has_all_own_and_one_of_each_other(blocks, block, parts, seed):
    count = blocks * block
    negatives = draw_negatives(count, parts, seed, block)
    for start in range(0, count, block):
        readers = torch.arange(start, start + block)
        selected = select_sub_captions(readers, start, block, parts, negatives)
        for reader, row in zip(readers.tolist(), selected.tolist(), strict=True):
            owners = [index // parts for index in row]
            assert owners.count(reader) == parts
            assert len(set(row)) == len(row)
            others = set(range(start, start + block)) - {reader}
            assert sorted(o for o in owners if o != reader) == sorted(others)
