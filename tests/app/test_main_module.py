from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from safetensors.torch import load_file

from app.__main__ import main
from app.engine.engine import Engine
from models import list_models, load_model, recognise
from models.inference import segment_image
from models.zoo import PUBLISHED

MODEL = "ccnet-mobilenetv2-camvid"

Seglens = Callable[..., int]


@pytest.fixture
def seglens(monkeypatch: pytest.MonkeyPatch) -> Seglens:
    """Runs the command line in this process, with settings of its own."""
    for name in [name for name in os.environ if name.startswith("SEGLENS_")]:
        monkeypatch.delenv(name)

    def seglens(*arguments: str | Path, **settings: str) -> int:
        for name, value in settings.items():
            monkeypatch.setenv(f"SEGLENS_{name.upper()}", value)
        monkeypatch.setattr(sys, "argv", ["seglens", *map(str, arguments)])
        return main()

    return seglens


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another OpenMP")
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "4000"), ({"GOMP_SPINCOUNT": "70"}, "70"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "30000000000")],
)
def test_threads_of_a_pass_do_not_wait_for_long_on_a_core_that_others_want(given: dict[str, str], spins: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    ran = subprocess.run(
        [sys.executable, "-c", "import app.__main__"],
        env={**environment, **given, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{spins}'" in ran.stderr, "what OpenMP says that it took"


def street(width: int = 96, height: int = 72) -> Image.Image:
    """Sky above road."""
    picture = Image.new("RGB", (width, height), (150, 180, 220))
    picture.paste((90, 90, 90), (0, height // 2, width, height))
    return picture


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    street().save(path)
    return path


# --- models, segment


def test_models_lists_every_model_and_marks_the_default(seglens: Seglens, capsys: pytest.CaptureFixture[str]) -> None:
    assert seglens("models") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[line.startswith("*")] for line in lines] == [spec.name for spec in list_models()]
    assert [line.split()[1] for line in lines if line.startswith("*")] == [MODEL]
    assert all(re.search(r"mIoU +\d+\.\d\d", line) for line in lines)


def test_models_lists_the_folder_too_and_says_what_cannot_be_served(
    seglens: Seglens, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(list_models()[0].weights, tmp_path / "mine.safetensors")
    (tmp_path / "broken.pth").write_bytes(b"no tensors")
    assert seglens("models", model_dir=str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list_models()) + 2
    assert lines[-1].split()[:2] == ["mine", "CamVid,"]
    assert re.match(r"  broken +cannot be served: .*broken\.pth: not a torch checkpoint$", lines[-2])


def test_models_zoo_lists_what_is_published(seglens: Seglens, capsys: pytest.CaptureFixture[str]) -> None:
    assert seglens("models", "--zoo") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == [one.file for one in PUBLISHED]
    assert lines[0].split() == [
        *("ccnet_r50-d8_512x1024_40k_cityscapes", "Cityscapes", "ResNet-50", "512x1024", "mIoU", "77.76", "4123f401"),
        "ccnet_r50-d8_512x1024_40k_cityscapes_20200616_142517-4123f401.pth",
    ]


def test_models_may_be_cut_short_by_whoever_reads() -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does
    ran = subprocess.run([sys.executable, "-m", "app", "models", "--zoo"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (1, b"")


def test_convert_writes_what_can_be_served(
    seglens: Seglens, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = tmp_path / "theirs.pth", tmp_path / "ours.safetensors"
    torch.save(load_file(list_models()[0].weights), theirs)
    theirs.with_suffix(".yaml").write_text("title: Mine\nscale: [96, 72]\n")
    assert seglens("convert", theirs, "-o", ours) == 0
    assert capsys.readouterr().out.startswith(f"{ours}: Mine, 11 classes, ")
    theirs.with_suffix(".yaml").unlink()
    mask = tmp_path / "mask.png"
    assert seglens("segment", photo, "-o", mask, "--model", "ours", model_dir=str(tmp_path)) == 0
    spec = recognise(ours)
    assert (spec.title, spec.preprocessing.scale) == ("Mine", (96, 72))
    ids, _ = segment_image(load_model(spec), torch.from_numpy(np.array(street())), spec.preprocessing)
    assert np.array_equal(np.array(Image.open(mask)), ids.numpy())


def test_convert_says_why_it_cannot(seglens: Seglens, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.pth").write_bytes(b"no tensors")
    error = failing(seglens, capsys, "convert", tmp_path / "broken.pth", "-o", tmp_path / "ours.safetensors")
    assert "broken.pth: not a torch checkpoint" in error


@pytest.mark.parametrize("command", ["convert", "export"])
def test_a_folder_to_write_into_is_named(
    seglens: Seglens, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    missing, file = tmp_path / "missing", tmp_path / "file"
    file.touch()
    weights = list_models()[0].weights
    error = failing(seglens, capsys, command, weights, "-o", missing / "ours.safetensors")
    assert error == f"seglens: {missing / 'ours.safetensors'}: there is no folder {missing}\n"
    error = failing(seglens, capsys, command, weights, "-o", file / "ours.safetensors")
    assert error == f"seglens: {file / 'ours.safetensors'}: {file} is no folder\n"


def test_convert_says_what_it_cannot_write(
    seglens: Seglens, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ours.part").mkdir()  # where it writes first
    ours = tmp_path / "ours.safetensors"
    assert f"seglens: {ours}: " in failing(seglens, capsys, "convert", list_models()[0].weights, "-o", ours)


@pytest.mark.parametrize("by", ["name", "file"])
def test_export_takes_a_name_or_a_file(
    seglens: Seglens, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """What it writes is tested in tests/models/test_export.py: it takes long."""
    exported = {}
    monkeypatch.setattr("app.__main__.export_onnx", lambda spec, path: exported.update({path: spec}))
    spec = list_models()[1]
    output = tmp_path / "model.onnx"
    assert seglens("export", spec.name if by == "name" else spec.weights, "--format", "onnx", "-o", output) == 0
    assert capsys.readouterr().out.startswith(f"{output}: ANN, ")
    assert exported[output].sha256 == spec.sha256


def test_export_of_what_is_not_there(seglens: Seglens, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no model 'unet'" in failing(seglens, capsys, "export", "unet", "-o", tmp_path / "model.onnx")


def test_segment_takes_a_model_of_the_folder(seglens: Seglens, photo: Path, tmp_path: Path) -> None:
    shutil.copyfile(list_models()[0].weights, tmp_path / "mine.safetensors")
    mine, bundled = tmp_path / "mine.png", tmp_path / "bundled.png"
    assert seglens("segment", photo, "-o", mine, "--model", "mine", model_dir=str(tmp_path)) == 0
    assert seglens("segment", photo, "-o", bundled, "--model", MODEL) == 0
    assert mine.read_bytes() == bundled.read_bytes()


def test_segment_writes_ids_and_prints_each_class_share(
    seglens: Seglens, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = photo.with_name("mask.png")
    assert seglens("segment", photo, "-o", output) == 0
    mask = Image.open(output)
    assert (mask.mode, mask.size) == ("L", (96, 72))
    names = list_models()[0].classes.names
    assert np.array(mask).max() < len(names)
    printed = re.findall(r"^(.+?) +([\d.]+) %$", capsys.readouterr().out, re.MULTILINE)
    assert {name for name, _ in printed} == {names[class_id] for class_id in np.unique(np.array(mask))}
    assert sum(float(share) for _, share in printed) == pytest.approx(100, abs=0.1)


def test_segment_with_a_palette_keeps_the_ids(seglens: Seglens, photo: Path) -> None:
    plain, colored = photo.with_name("plain.png"), photo.with_name("colored.png")
    assert seglens("segment", photo, "-o", plain) == 0
    assert seglens("segment", photo, "-o", colored, "--palette", "--model", MODEL) == 0
    mask = Image.open(colored)
    assert mask.mode == "P"
    assert np.array_equal(np.array(mask), np.array(Image.open(plain)))
    palette = np.array(list_models()[0].classes.palette)
    assert np.array_equal(np.array(mask.convert("RGB")), palette[np.array(mask)])


# --- errors: one sentence, status 1


def failing(seglens: Seglens, capsys: pytest.CaptureFixture[str], *arguments: str | Path, **settings: str) -> str:
    assert seglens(*arguments, **settings) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("seglens: ")
    assert err.count("\n") == 1
    return err


def test_a_missing_file_is_named(seglens: Seglens, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing.jpg"
    assert str(missing) in failing(seglens, capsys, "segment", missing, "-o", tmp_path / "mask.png")


def test_a_file_that_is_no_image(seglens: Seglens, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("no image")
    assert "no image that we read" in failing(seglens, capsys, "segment", text, "-o", tmp_path / "mask.png")


def test_a_folder_that_is_not_there(seglens: Seglens, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = photo.parent / "nowhere" / "mask.png"
    assert str(output) in failing(seglens, capsys, "segment", photo, "-o", output)


def test_the_pixel_limit_holds_without_a_server(
    seglens: Seglens, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = failing(seglens, capsys, "segment", photo, "-o", photo.with_name("mask.png"), max_image_pixels="100")
    assert "96x72, 6912 pixels; the limit is 100" in error


@pytest.mark.parametrize("settings", [{}, {"default_model": "nope"}])
def test_an_unknown_model_is_named(
    seglens: Seglens, photo: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, str]
) -> None:
    option = () if settings else ("--model", "nope")
    error = failing(seglens, capsys, "segment", photo, "-o", photo.with_name("mask.png"), *option, **settings)
    assert "'nope'" in error
    assert MODEL in error


@pytest.mark.parametrize("command", ["models", "serve"])
def test_wrong_settings_stop_every_command(seglens: Seglens, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert "SEGLENS_PORT: " in failing(seglens, capsys, command, port="http")
    assert "unknown setting SEGLENS_PROT" in failing(seglens, capsys, command, port="80", prot="81")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", ["serve", "segment"])
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there(
    seglens: Seglens, photo: Path, capsys: pytest.CaptureFixture[str], command: str, device: str
) -> None:
    arguments = (photo, "-o", photo.with_name("mask.png")) if command == "segment" else ()
    error = failing(seglens, capsys, command, *arguments, device=device)
    assert f"no device {device}: SEGLENS_DEVICE " in error
    assert not photo.with_name("mask.png").exists()


@pytest.mark.parametrize("arguments", [[], ["sevre"], ["segment"], ["segment", "a.png"]])
def test_a_wrong_command_line_shows_the_usage(
    seglens: Seglens, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        seglens(*arguments)
    assert "usage: seglens" in capsys.readouterr().err


# --- serve


@pytest.fixture
def handlers() -> Iterator[None]:
    """`serve` takes signals over; the test run wants its own back."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def configs(handlers: None, monkeypatch: pytest.MonkeyPatch) -> list[uvicorn.Config]:
    """What servers were about to run with."""
    configs: list[uvicorn.Config] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self: configs.append(self.config))
    return configs


def test_serve_listens_where_the_settings_say(seglens: Seglens, configs: list[uvicorn.Config]) -> None:
    assert seglens("serve", host="127.0.0.9", port="9001", device="cpu") == 0
    assert (configs[0].host, configs[0].port) == ("127.0.0.9", 9001)


@pytest.mark.usefixtures("configs")
@pytest.mark.parametrize("setting", ["default_model", "models"])
def test_serve_does_not_start_with_an_unknown_model(
    seglens: Seglens, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    error = failing(seglens, capsys, "serve", device="cpu", **{setting: "nope"})
    assert error.startswith(f"seglens: SEGLENS_{setting.upper()}: no model 'nope'; there are {MODEL}, ")


@pytest.mark.usefixtures("handlers")
def test_an_address_that_cannot_be_had_is_named(seglens: Seglens, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit):
            seglens("serve", device="cpu", port=str(port))
    assert f"can't listen: SEGLENS_HOST is 127.0.0.1, SEGLENS_PORT {port}" in caplog.messages


@pytest.mark.usefixtures("handlers")
def test_serve_ends_with_an_error_once_the_engine_has_failed(seglens: Seglens, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(server: uvicorn.Server) -> None:
        server.config.app.state.services.engine.state = "failed"  # type: ignore[union-attr]

    monkeypatch.setattr(uvicorn.Server, "run", run)
    assert seglens("serve", device="cpu") == 1


@pytest.mark.usefixtures("configs")
def test_serve_does_not_wait_for_a_stuck_device(seglens: Seglens, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(Engine, "is_stuck", True)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    with pytest.raises(SystemExit, match="1"):
        seglens("serve", device="cpu")


def test_serve_answers_until_it_is_asked_to_end(
    serving: Callable[..., AbstractContextManager[tuple[str, Path, Any]]], photo: Path
) -> None:
    with serving(models=MODEL) as (url, log, _):
        reply = httpx.post(f"{url}/segment", content=photo.read_bytes(), timeout=60)
    assert reply.json()["model"] == MODEL
    assert reply.json()["image"] == {"width": 96, "height": 72}
    assert "Application shutdown complete" in log.read_text()
    assert "Traceback" not in log.read_text()
