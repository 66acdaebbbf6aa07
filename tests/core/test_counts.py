"""Counts in compressed rows, minibatches from them, and their order."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from mira_core.data import counts, loaders
from mira_core.data.counts import CountMatrix
from mira_core.data.statistics import learn
from tests.helpers import read_cells, with_columns


def unsorted(x: np.ndarray) -> sp.csr_array:
    """The same counts with columns of each row reversed."""
    m = sp.csr_array(x)
    for i in range(len(x)):
        row = slice(m.indptr[i], m.indptr[i + 1])
        m.indices[row], m.data[row] = m.indices[row][::-1].copy(), m.data[row][::-1].copy()
    m.has_sorted_indices = False
    return m


def doubled(x: np.ndarray) -> sp.coo_array:
    """The same counts, each stored as two entries that add up, with explicit zeros."""
    i, j = np.indices(x.shape).reshape(2, -1)
    first = x.ravel() // 2
    return sp.coo_array((np.r_[first, x.ravel() - first], (np.r_[i, i], np.r_[j, j])), shape=x.shape)


STORED = {
    "csr": sp.csr_array, "csr_matrix": sp.csr_matrix, "csc": sp.csc_array, "coo": sp.coo_array, "dense": np.asarray,
    "int8": lambda x: x.astype(np.int8), "float64": lambda x: sp.csr_matrix(x.astype(float)),
    "unsorted": unsorted, "duplicates and zeros": doubled,
}  # fmt: skip


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_equal_counts_give_equal_minibatches_however_stored(tiny, stored):
    x = tiny.X.toarray()
    plain, other = CountMatrix.from_scipy(sp.csr_array(x)), CountMatrix.from_scipy(stored(x))
    chosen = np.array([3, 0, 11, 3])
    a, b = plain.rows(chosen), other.rows(chosen)
    for name in ("data", "indices", "indptr"):
        assert getattr(a, name).dtype == getattr(b, name).dtype
        assert np.array_equal(getattr(a, name), getattr(b, name))


def test_the_matrix_given_is_not_changed():
    m = sp.csr_array(np.array([[2.0, 0, 1]]))
    m.data[0] = 0
    CountMatrix.from_scipy(m)
    assert m.nnz == 2


def test_depths_and_totals_are_plain_sums():
    x = np.array([[0, 0, 0], [1, 2, 0], [0, 0, 0], [0, 0, 5], [0, 0, 0]])
    m = CountMatrix.from_scipy(sp.csr_array(x))
    assert np.array_equal(m.depths(), x.sum(1))
    assert np.array_equal(m.feature_totals(), x.sum(0))
    assert m.depths().dtype == m.feature_totals().dtype == np.float64


def test_large_counts_are_summed_exactly():
    x = np.full((2, 3), 2**24)
    assert np.array_equal(CountMatrix.from_scipy(sp.csr_array(x)).depths(), [3 * 2**24] * 2)


def test_some_of_the_cells_are_taken_without_copying_their_counts(tiny):
    x, matrix = tiny.X.toarray(), CountMatrix.from_scipy(tiny.X)
    for rows in ([5, 1, 5], [], list(range(12))):
        part = matrix.take(np.array(rows, int))
        assert part.shape == (len(rows), 7)
        assert np.array_equal(part.to_csr().toarray(), x[rows].reshape(-1, 7))
        assert np.array_equal(part.depths(), x[rows].sum(1))
        assert np.array_equal(part.feature_totals(), x[rows].sum(0))
        assert np.shares_memory(part.stored.data, matrix.stored.data)
    twice = matrix.take(np.array([5, 1, 4])).take(np.array([2, 0]))
    assert np.array_equal(twice.to_csr().toarray(), x[[4, 5]])


@pytest.mark.parametrize("size", [1, 5, 12, 30, 1000])
def test_going_through_the_cells_in_chunks_gives_the_whole(tiny, monkeypatch, size):
    monkeypatch.setattr(counts, "CHUNK", size)
    matrix, x = CountMatrix.from_scipy(tiny.X), tiny.X.toarray()
    chunks = list(matrix.csr_chunks())
    assert all(c.nnz <= size or c.shape[0] == 1 for c in chunks)
    assert all(a.nnz + b[[0]].nnz > size for a, b in itertools.pairwise(chunks))
    assert np.array_equal(matrix.to_csr().toarray(), x)
    assert np.array_equal(matrix.depths(), x.sum(1))
    assert np.array_equal(matrix.feature_totals(), x.sum(0))


def test_a_minibatch_holds_the_rows_asked_for_in_that_order(tiny):
    cells, chosen = read_cells(tiny), np.array([5, 1, 5, 11, 0])
    batch = cells.batch(chosen)
    x = tiny.X.toarray()[chosen]
    assert batch.n_cells == 5
    assert np.array_equal(batch.counts_BG.numpy(), x)
    assert np.array_equal(batch.depth_B.numpy(), x.sum(1))
    assert np.array_equal(batch.place_M.numpy(), np.flatnonzero(x))
    assert np.array_equal(batch.feature_M.numpy(), np.nonzero(x)[1])
    assert np.array_equal(batch.count_M.numpy(), x[x > 0])
    assert batch.covariates_BC.shape == batch.extra_BF.shape == (5, 0)


def test_moving_a_minibatch_changes_only_the_floating_tensors(tiny):
    batch = read_cells(tiny).batch(np.arange(4)).to(torch.device("cpu"), torch.float64)
    assert (batch.edges_B1.dtype, batch.feature_M.dtype) == (torch.int64, torch.int32)
    assert batch.counts_BG.dtype == batch.count_M.dtype == batch.depth_B.dtype == batch.extra_BF.dtype == torch.float64


def test_extra_features_follow_their_cells(tiny):
    tiny.obs["a"] = np.arange(12.0)
    batch = read_cells(tiny, extra_features_keys="a").batch(np.array([7, 2]))
    assert batch.extra_BF[:, 0].tolist() == [7, 2]


@pytest.mark.parametrize(("n", "size", "steps"), [(10, 4, 2), (8, 4, 2), (3, 64, 1), (2, 2, 1), (65, 64, 1), (1, 5, 1)])
def test_an_epoch_has_full_minibatches_only_or_one_of_all_cells(n, size, steps):
    order = loaders.shuffled(n, size, np.random.default_rng(0))
    assert order.shape == (steps, min(size, n)) == (loaders.steps_per_epoch(n, size), min(size, n))
    assert len(set(order.ravel().tolist())) == order.size


def test_an_epoch_shows_each_cell_at_most_once_in_an_order_of_its_seed():
    def order(seed: int) -> list[int]:
        return loaders.shuffled(12, 3, np.random.default_rng(seed)).ravel().tolist()

    assert sorted(order(0)) == list(range(12))
    assert order(0) == order(0)
    assert order(0) != order(1)


@pytest.mark.parametrize("size", [1, 5, 11, 12, 100])
def test_reading_in_order_shows_every_cell_once(tiny, size):
    x = np.concatenate([b.counts_BG.numpy() for b in loaders.in_order(read_cells(tiny), size)])
    assert np.array_equal(x, tiny.X.toarray())


def test_reading_in_order_takes_fewer_cells_where_there_are_many_features(tiny, monkeypatch):
    monkeypatch.setattr(loaders, "DENSE", 7 * 5)
    assert [b.n_cells for b in loaders.in_order(read_cells(tiny))] == [5, 5, 2]
    monkeypatch.setattr(loaders, "DENSE", 3)
    assert [b.n_cells for b in loaders.in_order(read_cells(tiny))] == [1] * 12


def test_what_is_made_ahead_comes_in_order_and_its_errors_where_they_belong():
    made = []

    def make(i: int) -> int:
        made.append(i)
        if i == 7:
            raise OSError("the disk is gone")
        return i * i

    assert list(loaders.ahead(make, range(5))) == [0, 1, 4, 9, 16]
    made.clear()
    squares = loaders.ahead(make, range(100))
    assert [next(squares) for _ in range(7)] == [i * i for i in range(7)]
    with pytest.raises(OSError, match="the disk is gone"):
        next(squares)
    assert len(made) <= 7 + 1 + loaders.AHEAD
    made.clear()
    squares = loaders.ahead(make, range(5))
    next(squares)
    squares.close()
    assert len(made) <= 1 + loaders.AHEAD
    assert not [t for t in threading.enumerate() if t.name.startswith("minibatches")]


@pytest.mark.parametrize("options", [{}, {"categorical_covariates": "batch", "extra_features_keys": "extra"}])
def test_minibatches_assembled_on_a_device_equal_those_of_the_host(tiny, options):
    """The same operations, on the CPU."""
    cells = read_cells(with_columns(tiny), **options)
    cells = cells.take(np.array([3, 1, 4, 0, 11, 9]))
    on_device = loaders.DeviceCells(cells, torch.device("cpu"))
    for rows in ([2, 0, 5], [1], [5, 4, 3, 2, 1, 0]):
        got, wanted = on_device.batch(torch.tensor(rows)), cells.batch(np.array(rows))
        for name in ("counts_BG", "depth_B", "covariates_BC", "extra_BF", "n_cells", "n_features"):
            a, b = getattr(got, name), getattr(wanted, name)
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert loaders.DeviceCells.size(cells) >= sum(t.nbytes for t in (on_device.indices, on_device.values))


def test_statistics_are_shares_and_means_of_the_cells(tiny):
    tiny.var["seen"] = np.arange(7) % 2 == 0
    s = learn(read_cells(tiny, endogenous_key="seen"))
    x = tiny.X.toarray().astype(float)
    seen = x[:, ::2]
    assert s.n_cells == 12
    np.testing.assert_allclose(s.mean_profile, (x.sum(0) + 0.5) / (x.sum() + 3.5), rtol=1e-12)
    np.testing.assert_allclose(s.endogenous_share, seen.sum(0) / seen.sum(), rtol=1e-12)
    np.testing.assert_allclose(s.endogenous_depth, seen.sum(1).mean(), rtol=1e-12)


def test_a_feature_without_counts_keeps_a_positive_share_of_the_profile(tiny):
    x = tiny.X.toarray()
    x[:, 0] = 0
    x[:, 1] += 1
    tiny.X = sp.csr_matrix(x)
    s = learn(read_cells(tiny))
    assert s.mean_profile[0] > 0
    assert s.endogenous_share[0] == 0
