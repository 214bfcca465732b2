"""What is found in the folder, and what when files come, change and go."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.catalog import Catalog, Unreadable
from models import Card, ModelError, ModelSpec, UnknownModel, get_spec, list_models

CCNET, ANN = "ccnet-mobilenetv2-camvid", "ann-mobilenetv2-camvid"


def drop(folder: Path, name: str, of: str = CCNET) -> Path:
    """A checkpoint of ours under another name."""
    path = folder / f"{name}.safetensors"
    shutil.copyfile(get_spec(of).weights, path)
    return path


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(list_models(), tmp_path)


def test_without_a_folder_there_is_what_is_bundled() -> None:
    catalog = Catalog(list_models(), None)
    assert catalog.specs() == list_models()
    assert catalog.find(CCNET) == get_spec(CCNET)


def test_a_file_dropped_in_the_folder_is_found(catalog: Catalog, tmp_path: Path) -> None:
    assert catalog.specs() == list_models()
    path = drop(tmp_path, "mine")
    (tmp_path / "notes.txt").write_text("no checkpoint")
    (tmp_path / "folder.pth").mkdir()
    assert [spec.name for spec in catalog.specs()] == [*(spec.name for spec in list_models()), "mine"]
    assert catalog.find("mine").weights == path
    path.unlink()
    assert catalog.specs() == list_models()


def test_an_unknown_name_is_told_those_there_are(catalog: Catalog, tmp_path: Path) -> None:
    drop(tmp_path, "mine")
    with pytest.raises(UnknownModel, match=rf"'nope'.*{CCNET}.*mine"):
        catalog.find("nope")


def test_a_file_that_is_no_model_says_why(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    found = catalog.look()["broken"]
    assert isinstance(found, Unreadable)
    assert "broken.safetensors" in found.reason
    assert catalog.specs() == list_models()
    with pytest.raises(ModelError, match="safetensors"):
        catalog.find("broken")
    drop(tmp_path, "broken")
    assert catalog.find("broken").name == "broken", "it has been written to the end since"


def test_a_link_that_leads_nowhere_says_so_once(
    catalog: Catalog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "moved.safetensors").symlink_to(elsewhere / "moved.safetensors")
    for _ in range(2):
        found = catalog.look()["moved"]
        assert isinstance(found, Unreadable)
        assert "moved.safetensors" in found.reason
    assert len([record for record in caplog.records if "moved cannot be served" in record.message]) == 1
    drop(elsewhere, "moved")
    assert catalog.find("moved").name == "moved"


def test_a_file_is_read_again_only_if_it_or_what_lies_beside_it_has_changed(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def recognise(path: Path, said: Card) -> ModelSpec:
        read.append(path.stem)
        return get_spec(CCNET)

    monkeypatch.setattr("app.catalog.recognise", recognise)
    drop(tmp_path, "one")
    drop(tmp_path, "two")
    for _ in range(3):
        catalog.look()
    assert read == ["one", "two"]
    drop(tmp_path, "two", of=ANN)
    catalog.look()
    assert read == ["one", "two", "two"]
    (tmp_path / "one.yaml").write_text("classes: [a, b]")
    catalog.look()
    assert read == ["one", "two", "two", "one"]


def test_a_file_of_ones_own_goes_before_the_bundled_one_of_its_name(catalog: Catalog, tmp_path: Path) -> None:
    path = drop(tmp_path, CCNET, of=ANN)
    assert catalog.find(CCNET).weights == path
    assert len(catalog.specs()) == len(list_models())


def test_a_folder_that_is_gone_takes_its_models_along(catalog: Catalog, tmp_path: Path) -> None:
    drop(tmp_path, "mine")
    assert "mine" in catalog.look()
    shutil.rmtree(tmp_path)
    assert catalog.specs() == list_models()


def test_a_file_that_goes_while_it_is_read_says_so(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recognise(path: Path, said: Card) -> ModelSpec:
        raise FileNotFoundError(f"no such file: {path}")

    monkeypatch.setattr("app.catalog.recognise", recognise)
    drop(tmp_path, "mine")
    assert isinstance(catalog.look()["mine"], Unreadable)


def test_what_lies_beside_a_file_is_said_of_it(catalog: Catalog, tmp_path: Path) -> None:
    drop(tmp_path, "mine")
    (tmp_path / "mine.yaml").write_text("title: My own\nmode: slide")
    spec = catalog.find("mine")
    assert (spec.title, spec.inference.mode) == ("My own", "slide")
    (tmp_path / "mine.yaml").write_text("colours: [1]")
    with pytest.raises(ModelError, match=r"mine\.yaml: unknown key 'colours'"):
        catalog.find("mine")
    (tmp_path / "mine.yaml").unlink()
    assert catalog.find("mine").inference.mode == "whole"


def test_of_two_files_of_one_name_the_safetensors_is_taken(catalog: Catalog, tmp_path: Path) -> None:
    for suffix in ("pth", "pt"):
        (tmp_path / f"mine.{suffix}").write_bytes(b"no tensors")
    assert isinstance(catalog.look()["mine"], Unreadable)
    path = drop(tmp_path, "mine")
    assert catalog.find("mine").weights == path


def test_what_cannot_be_served_is_logged_once(
    catalog: Catalog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.pth").write_bytes(b"no tensors")
    for _ in range(3):
        catalog.look()
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"broken cannot be served: {tmp_path / 'broken.pth'}: not a torch checkpoint"
    ]


@pytest.mark.parametrize("name", [CCNET, "mine"])
def test_what_cannot_be_served_takes_no_others_place(catalog: Catalog, tmp_path: Path, name: str) -> None:
    if name == "mine":
        torch.save(load_file(get_spec(CCNET).weights), tmp_path / "mine.pt")
    (tmp_path / f"{name}.safetensors").write_bytes(b"no tensors")
    assert catalog.find(name).classes == get_spec(CCNET).classes
    assert all(not isinstance(found, Unreadable) for found in catalog.look().values())


@pytest.mark.parametrize("name", [b"a,b", b" a", b"a ", b"new\nline", b"bad\xff"])
def test_a_name_that_no_request_could_give_is_told_and_can_be_said(
    catalog: Catalog, tmp_path: Path, name: bytes
) -> None:
    path = tmp_path / os.fsdecode(name + b".safetensors")
    shutil.copyfile(get_spec(CCNET).weights, path)
    (found,) = (found for found in catalog.look().values() if isinstance(found, Unreadable))
    assert "the file's name is" in found.reason
    (found.name + found.reason).encode()
    assert (found.name + found.reason).isprintable()
