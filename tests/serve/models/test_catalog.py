from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesmith.errors import UsageError
from serve.models.catalog import find_versions, list_catalog, natural_key


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    return path


@given(st.lists(st.integers(0, 10**6), unique=True))
def test_numbers_sort_by_their_value(numbers: list[int]) -> None:
    for form in ("{}", "v{}", "1.{}", "{}-rc"):
        names = sorted((form.format(number) for number in numbers), key=natural_key)
        assert names == [form.format(number) for number in sorted(numbers)]


@given(st.lists(st.text("019ab._-", min_size=1, max_size=6)))
def test_any_names_can_be_sorted(names: list[str]) -> None:
    assert len(sorted(names, key=natural_key)) == len(names)


def test_whole_artifacts_bare_files_and_versions_are_found(tmp_path: Path) -> None:
    put(tmp_path / "whole" / "manifest.json")
    put(tmp_path / "genai" / "genai_config.json")
    bare = put(tmp_path / "bare" / "model.gguf")
    for version in ("2", "10", "1"):
        put(tmp_path / "many" / version / "manifest.json")
    put(tmp_path / "many" / "notes.txt")
    (tmp_path / "many" / "3").mkdir()
    assert find_versions(tmp_path, "whole") == {"1": tmp_path / "whole"}
    assert find_versions(tmp_path, "genai") == {"1": tmp_path / "genai"}
    assert find_versions(tmp_path, "bare") == {"1": bare}
    assert list(find_versions(tmp_path, "many").items()) == [
        (version, tmp_path / "many" / version) for version in ("1", "2", "10")
    ]
    assert find_versions(tmp_path, "none") == {}
    assert list_catalog(tmp_path) == ["bare", "genai", "many", "whole"]


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "/etc", "a\\b", ".hidden", "a\0b", "x" * 129, "ä"])
def test_what_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no name of a model"):
        find_versions(tmp_path, name)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    outside, catalog = tmp_path / "outside", tmp_path / "catalog"
    put(outside / "manifest.json")
    put(outside / "model.onnx")
    put(catalog / "good" / "1" / "manifest.json")
    (catalog / "linked").symlink_to(outside)
    (catalog / "version").mkdir()
    (catalog / "version" / "1").symlink_to(outside)
    (catalog / "file").mkdir()
    (catalog / "file" / "model.onnx").symlink_to(outside / "model.onnx")
    (catalog / "inside").symlink_to(catalog / "good")
    for name in ("linked", "version", "file"):
        with pytest.raises(UsageError, match="link out of the repository"):
            find_versions(catalog, name)
    assert list(find_versions(catalog, "inside")) == ["1"]
    assert "linked" not in list_catalog(catalog)
