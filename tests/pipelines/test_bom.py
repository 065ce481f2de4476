"""The papers of a bundle: the bill of materials against CycloneDX's own schema, and what an officer looks for."""

import json

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from pipelines import bom, card, check
from pipelines.export import About
from pipelines.params import parse
from pipelines.stage import StageError
from tests.tiny import TARGET, export

ABOUT = {
    "supplier": "Fields and Sons",
    "license": "LicenseRef-Proprietary",
    "contact": "models@example.org",
    "intended_use": "Sorts apples.",
    "users": ["operators of the sorting line"],
    "out_of_scope": "Grading for export.",
    "data": "Photographs of our own line, May 2025.",
    "data_license": "CC-BY-4.0",
    "sensitive_data": "none",
}


def papers(project, about=None, **changes):
    """Export the bundle again, with `export.about` stated, and return its bill of materials, checked, and its card."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["export"]["about"] = about
    (project / "params.yaml").write_text(yaml.safe_dump({**params, "student": {"family": "separable"}}))
    bundle = export(project, **changes)
    text = (bundle / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    return json.loads(text), (bundle / "MODEL_CARD.md").read_text()


def test_who_answers_for_what_and_for_which_use(project):
    found, text = papers(project, ABOUT)
    model = found["metadata"]["component"]
    assert model["supplier"] == found["metadata"]["supplier"] == {"name": "Fields and Sons"}
    assert model["licenses"] == [{"expression": "LicenseRef-Proprietary"}]
    considered = model["modelCard"]["considerations"]
    assert considered["useCases"] == ["Sorts apples."] and considered["users"] == ABOUT["users"]
    assert "Grading for export." in considered["technicalLimitations"]
    (data,) = [c for c in found["components"] if c["type"] == "data"]
    assert data["licenses"] == [{"expression": "CC-BY-4.0"}] and data["data"][0]["sensitiveData"] == ["none"]
    assert data["data"][0]["governance"]["custodians"][0]["organization"]["name"] == "Fields and Sons"
    for words in ("Fields and Sons", "LicenseRef-Proprietary", "models@example.org", "Sorts apples."):
        assert words in text
    assert "not stated |" not in text


def test_what_nobody_stated_is_said_and_not_invented(project):
    found, text = papers(project)
    assert "| Supplier | not stated |" in text and "supplier" not in found["metadata"]
    assert "licenses" not in found["metadata"]["component"]


def test_where_it_comes_from_and_what_it_is_made_of(project):
    found, text = papers(project, ABOUT)
    evidence = json.loads((project / "build" / "bundles" / TARGET / "evidence.json").read_text())
    model = found["metadata"]["component"]
    assert model["pedigree"]["ancestors"][0]["version"] == evidence["source"]["sha256"]
    stated = {p["name"]: p["value"] for p in model["properties"]}
    assert stated["quantmill:code"] == evidence["code"]["sha256"] and stated["quantmill:verdict"] == "passed"
    libraries = {c["name"]: c for c in found["components"] if c["type"] == "library"}
    assert all(c["licenses"] and c["purl"].startswith("pkg:pypi/") for c in libraries.values()) and libraries
    refs = {c["bom-ref"] for c in found["components"]} | {model["bom-ref"]}
    assert {d["ref"] for d in found["dependencies"]} <= refs
    assert all(set(d.get("dependsOn", [])) <= refs for d in found["dependencies"])
    assert evidence["calibration"] in text and evidence["data"]["sha256"] in text


def test_numbers_carry_intervals_and_slices():
    metrics = {
        "accuracy": 0.9,
        "accuracy_low": 0.8,
        "accuracy_high": 1.0,
        "slices": {"class a": 0.5},
        "energy_mj": None,
    }
    whole, part = bom.measured(metrics)
    assert whole["confidenceInterval"] == {"lowerBound": "0.8", "upperBound": "1.0"}
    assert part == {"type": "task metric", "value": "0.5", "slice": "class a"}


def test_a_bundle_that_failed_says_so_among_its_limits(project):
    found, text = papers(project, verdict="failed")
    said = "It did not pass its gates; the verdict is failed."
    assert (
        said in text and said in found["metadata"]["component"]["modelCard"]["considerations"]["technicalLimitations"]
    )


def test_the_same_content_gives_the_same_papers(project):
    one, two = papers(project, ABOUT), papers(project, ABOUT)
    assert one == two and one[0]["serialNumber"].startswith("urn:uuid:")


def test_a_license_is_an_expression():
    with pytest.raises(StageError, match="license"):
        parse({"license": "ask Bob, please!"}, About, "export.about")


def test_the_schema_knows_what_can_be_stated():
    assert set(ABOUT) == set(check.schema()["$defs"]["About"]["properties"])
    assert set(card.STATED) <= set(ABOUT)
