"""Reading params.yaml: typed, strict, one line per mistake."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from pipelines import params
from pipelines.params import Section
from pipelines.stage import StageError


class Knobs(Section):
    ratio: float = Field(gt=0, lt=1)
    images: int
    names: tuple[str, ...] = ()


def parse(tmp_path, text, model=Knobs):
    file = tmp_path / "params.yaml"
    file.write_text(text)
    return params.section("knobs", model, file)


def test_reads_numbers_as_yaml_1_2_does(tmp_path):
    assert parse(tmp_path, "knobs: {ratio: 1e-3, images: 3}").ratio == 0.001


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_float_that_yaml_writes_is_read_back(number):
    text = yaml.safe_dump({"x": number})
    assert math.isclose(yaml.load(text, Loader=params._Loader)["x"], number, rel_tol=1e-15)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("knobs: {ratios: 0.5, images: 1}", "knobs.ratios: unknown key; did you mean 'ratio'?"),
        ("knobs: {zzz: 0.5, ratio: 0.5, images: 1}", "knobs.zzz: unknown key; have: images, names, ratio"),
        ("knobs: {ratio: 0.5}", "knobs.images: missing; add it (see params.schema.json)"),
        ("knobs: {ratio: '0.5', images: 1}", 'knobs.ratio: should be a valid number (is "0.5")'),
        ("knobs: {ratio: 1.5, images: 1}", "knobs.ratio: should be less than 1 (is 1.5)"),
        ("knobs: {ratio: 0.5, images: 1.5}", "knobs.images: should be a valid integer"),
        ("knobs: {ratio: 0.5, images: true}", "knobs.images: should be a valid integer (is true)"),
        ("knobs: {ratio: 0.5, ratio: 0.6, images: 1}", "key 'ratio' is given twice"),
        ("other: 1", "knobs: missing; add it"),
        ("- 1", "holds no mapping"),
        ("knobs: {ratio: [", ":1: not valid YAML"),
        ("knobs: !!python/object/apply:os.system [id]", "not valid YAML"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_key(tmp_path, text, message):
    with pytest.raises(StageError) as error:
        parse(tmp_path, text)
    assert message in str(error.value)
    assert str(error.value).count("\n") == 0 and "params.yaml" in str(error.value)


def test_each_mistake_has_its_line(tmp_path):
    with pytest.raises(StageError) as error:
        parse(tmp_path, "knobs: {ratio: 2, images: x}")
    assert len(str(error.value).splitlines()) == 2


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StageError, match=r"none.yaml: no such file"):
        params.read(tmp_path / "none.yaml")
