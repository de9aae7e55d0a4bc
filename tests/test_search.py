"""Exact search: the ranks of a plain product, ties by row, whatever the type and the blocks."""

import numpy as np
import pytest
import torch

from caft import search
from caft.errors import DataError
from caft.search import nearest


def matrix_of(rows, width=32, seed=0):
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=1)


@pytest.mark.parametrize("rows", [1, 7, 500, 3001])
@pytest.mark.parametrize("threads", [1, 3])
def test_ranks_are_those_of_a_stable_sort_of_all_scores(rows, threads, monkeypatch):
    monkeypatch.setattr(search, "BLOCK_VALUES", 32 * 64)
    draw = torch.Generator().manual_seed(rows)  # integers: products are exact, and often equal
    matrix = torch.randint(-2, 3, (rows, 32), generator=draw).half()
    queries = torch.randint(-2, 3, (5, 32), generator=draw).float()
    found = nearest(matrix, queries, 20, cosine=False, threads=threads)
    scores = queries @ matrix.float().T
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :20]
    assert torch.equal(found.rows, order)
    assert torch.equal(found.scores, scores.gather(1, order))


def test_equal_images_have_equal_scores_wherever_they_lie():
    matrix = matrix_of(2500, 512).half()
    assert torch.allclose(nearest(4 * matrix, matrix[0], 1).scores, torch.ones(1, 1))
    twice = torch.cat([matrix, matrix, matrix[:77]])
    found = nearest(twice, matrix_of(1, 512, seed=1), len(twice))
    by_row = torch.empty(len(twice)).scatter_(0, found.rows[0], found.scores[0])
    assert torch.equal(by_row[:2500], by_row[2500:5000])
    assert torch.equal(by_row[5000:], by_row[:77])


def test_a_file_is_searched_without_being_read_into_memory(tmp_path):
    matrix = matrix_of(400).half()
    np.save(tmp_path / "whole.npy", matrix.numpy())
    mapped = np.load(tmp_path / "whole.npy", mmap_mode="r")
    assert torch.equal(
        nearest(mapped, matrix[17].float(), 3).rows, nearest(matrix, matrix[17], 3).rows
    )
    assert nearest(mapped, matrix[17].float(), 3).rows[0, 0] == 17


def test_all_scores_equal_gives_the_first_rows():
    assert nearest(torch.ones(3000, 4), torch.ones(4), 5).rows.tolist() == [[0, 1, 2, 3, 4]]


def test_no_rows_and_another_width():
    assert nearest(torch.zeros(0, 4), torch.ones(4), 5).rows.shape == (1, 0)
    with pytest.raises(DataError, match=r"width 8: the embeddings have 4; .* one model"):
        nearest(torch.zeros(3, 4), torch.ones(8), 5)
