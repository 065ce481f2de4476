"""Splits: given ones are kept, made ones are stratified, and no group of duplicates straddles them."""

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.splits import TEST, TRAIN, VAL, Splits, assign

SHARES = Splits(val=0.1, test=0.3)
ROWS = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from("abc"), st.sampled_from([-1, -1, TRAIN, VAL, TEST])), min_size=1
)


def hashes(numbers: list[int]) -> np.ndarray:
    return np.array([hashlib.sha256(str(n).encode()).hexdigest() for n in numbers] or [], "S64")


def split(rows: list[tuple[int, str, int]], seed: int = 0) -> np.ndarray:
    found = [row[2] for row in rows]
    return assign(hashes([row[0] for row in rows]), np.array(found, np.int8), lambda n: [rows[n][1]], SHARES, seed)


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_no_group_without_a_given_split_straddles_and_given_ones_stay(rows):
    found = split(rows)
    assert set(found.tolist()) <= {TRAIN, VAL, TEST}
    whole = {number: {row[2] for row in rows if row[0] == number} for number, _, _ in rows}
    lacking = [s for s in (VAL, TEST) if s not in {row[2] for row in rows}]
    for (number, _, asked), got in zip(rows, found, strict=True):
        mine = {int(g) for row, g in zip(rows, found, strict=True) if row[0] == number}
        if len(whole[number] - {-1}) <= 1:
            assert len(mine) == 1
        if asked in (VAL, TEST):
            assert got == asked
        if asked == TRAIN:
            assert got == TRAIN or got in lacking


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(30)))
def test_the_order_of_the_rows_does_not_matter(order):
    rows = [(n, "abc"[n % 3], -1) for n in range(30)]
    found = split(rows)
    assert split([rows[n] for n in order]).tolist() == found[list(order)].tolist()


def test_each_class_has_its_shares():
    rows = [(n, "abc"[n % 3], -1) for n in range(300)]
    found = split(rows)
    for label in "abc":
        mine = [int(got) for row, got in zip(rows, found, strict=True) if row[1] == label]
        assert [mine.count(s) for s in (TRAIN, VAL, TEST)] == [60, 10, 30]
    assert split(rows, seed=1).tolist() != found.tolist()


def test_an_image_added_later_moves_few_others():
    rows = [(n, "a", -1) for n in range(200)]
    moved = (split(rows) != split([*rows, (999, "a", -1)])[:200]).sum()
    assert moved <= 2
