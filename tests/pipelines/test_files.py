"""Files are written whole, JSON is canonical."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.files import read_json, sha256_tree, to_json, write_file, write_folder, write_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_json_keeps_values_and_does_not_depend_on_the_order_of_keys(value):
    text = to_json(value)
    assert json.loads(text) == value
    assert to_json(json.loads(text)) == text


def test_what_json_cannot_say_is_null():
    assert json.loads(to_json({"a": float("nan"), "b": [float("inf")]})) == {"a": None, "b": [None]}


def test_a_file_is_whole_or_as_it_was(tmp_path):
    target = tmp_path / "deep" / "a.json"
    write_json(target, {"x": 1})
    with pytest.raises(RuntimeError), write_file(target) as part:
        part.write_text("half")
        raise RuntimeError
    assert read_json(target) == {"x": 1}
    assert [p.name for p in target.parent.iterdir()] == ["a.json"]


def test_a_folder_is_replaced_whole_or_stays(tmp_path):
    target = tmp_path / "out"
    with write_folder(target) as part:
        (part / "one").write_text("1")
    before = sha256_tree(target)
    with pytest.raises(RuntimeError), write_folder(target) as part:
        (part / "two").write_text("2")
        raise RuntimeError
    assert sha256_tree(target) == before
    with write_folder(target) as part:
        (part / "two").write_text("2")
    assert [p.name for p in target.iterdir()] == ["two"] and [p.name for p in tmp_path.iterdir()] == ["out"]
