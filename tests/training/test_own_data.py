"""A data set of one's own by the two commands: three classes, no lists of names, sizes that differ from CamVid's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from models import Inference, load_segmentor
from models.checkpoint import read_checkpoint, save_segmentor
from models.inference import segment_image
from models.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, normalize
from training import evaluate as evaluation
from training import train as training
from training.confusion import CELL, MARGIN, scores
from training.data import Sample, load_split
from training.evaluate import count_confusion, evaluate, report
from training.labels import load_labels

NAMES, PALETTE = ["soil", "crop", "weed"], [[90, 60, 30], [0, 160, 0], [220, 0, 80]]
COMMANDS = {"train": training.main, "evaluate": evaluation.main}
SHORT = ("--head", "fcn", "--epochs", "1", "--batch-size", "2", "--crop", "32")
# Width and height of a split's images. Those of `test` would ask for a larger network input than training's.
SIZES = {"train": (72, 56), "val": (56, 72), "test": (144, 112)}
# That of training's largest image times 4/3, as the default recipe enlarges.
PREPROCESSING = Preprocessing((96, 75), IMAGENET_MEAN, IMAGENET_STD, multiple=16)

Run = Callable[..., int]


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures a split of coloured blocks, and the labels file; the masks' first rows are 255."""
    root, rng = tmp_path_factory.mktemp("fields"), np.random.default_rng(0)
    (root / "labels.yaml").write_text(yaml.safe_dump({"names": NAMES, "palette": PALETTE}))
    for split, (width, height) in SIZES.items():
        (root / split).mkdir()
        (root / f"{split}annot").mkdir()
        for name in ("a", "b.2"):
            mask = rng.integers(3, size=(height // 8, width // 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(np.array(PALETTE, np.uint8)[mask]).save(root / split / f"{name}.png")
            mask[:4] = 255
            Image.fromarray(mask).save(root / f"{split}annot" / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def trained(fields: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training of one step wrote."""
    output = tmp_path_factory.mktemp("trained")
    labels = fields / "labels.yaml"
    arguments = ("--data", fields, "--labels", labels, "--output", output, *SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train", *map(str, arguments)])
        assert training.main() == 0
    return output


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(command: str, *arguments: object) -> int:
        monkeypatch.setattr("sys.argv", [command, *map(str, arguments)])
        return COMMANDS[command]()

    return run


@pytest.fixture(scope="module")
def weights(fields: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained ones with the classes brought level, so that more than one of them wins somewhere."""
    path = tmp_path_factory.mktemp("weights") / "level.safetensors"
    checkpoint = read_checkpoint(trained / "weights.safetensors")
    segmentor = load_segmentor(trained / "weights.safetensors")
    images = torch.stack([sample.image for sample in split_of(fields)])
    bias = segmentor.decode_head.conv_seg.bias
    assert bias is not None
    with torch.no_grad():
        bias -= segmentor(normalize(images, PREPROCESSING)).logits.mean((0, 2, 3))
    save_segmentor(segmentor, path, checkpoint.metadata)
    return path


def split_of(fields: Path) -> list[Sample]:
    return load_split(fields, "test", load_labels(fields / "labels.yaml"))


@pytest.fixture
def evaluated(run: Run, fields: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the command prints about `test` with more options."""

    def evaluated(*options: object) -> str:
        assert run("evaluate", weights, "--data", fields, "--labels", fields / "labels.yaml", *options) == 0
        return capsys.readouterr().out.strip()

    return evaluated


@pytest.fixture
def refused(run: Run, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str, Path], str]:
    """The one line that a command says about a data set it does not take."""

    def refused(command: str, data: Path) -> str:
        own = {"train": ("--output", tmp_path / "out", *SHORT), "evaluate": (trained / "weights.safetensors",)}
        options = ("--split", "val") if command == "evaluate" else ()
        code = run(command, *own[command], "--data", data, "--labels", data / "labels.yaml", *options)
        said = capsys.readouterr()
        assert (code, said.out) == (1, "")
        assert said.err.startswith(f"{command}: ")
        assert said.err.count("\n") == 1
        return said.err

    return refused


def test_training_writes_weights_and_scores(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {"last.pt", "weights.safetensors", "val.json", "test.json"}
    assert len(json.loads((trained / "test.json").read_text())["iou"]) == 3


def test_header_says_what_the_weights_were_trained_for(trained: Path) -> None:
    metadata = read_checkpoint(trained / "weights.safetensors").metadata
    assert json.loads(metadata["classes"]) == {"names": NAMES, "palette": PALETTE}
    assert Preprocessing(**json.loads(metadata["preprocessing"])).input_size((560, 720)) == (80, 96)
    recipe = json.loads(metadata["recipe"])
    assert (recipe["head"], recipe["crop"], recipe["drawn_share"]) == ("fcn", 32, 0)


def test_evaluation_uses_the_weights_own_preprocessing(
    evaluated: Callable[..., str], fields: Path, weights: Path
) -> None:
    segmentor, samples = load_segmentor(weights), split_of(fields)
    other = report(evaluate(segmentor, samples, replace(PREPROCESSING, scale=(144, 112))), NAMES)
    assert evaluated() == report(evaluate(segmentor, samples, PREPROCESSING), NAMES) != other


@pytest.mark.parametrize(
    ("options", "scales", "flip"),
    [
        ("--flip", (1.0,), True),
        ("--scales 0.5 1.5", (0.5, 1.5), False),
        ("--flip --scales 0.75 1 1.25", (0.75, 1.0, 1.25), True),
    ],
)
def test_flip_and_scales_are_averaged(
    options: str, scales: tuple[float, ...], flip: bool, evaluated: Callable[..., str], fields: Path, weights: Path
) -> None:
    segmentor, inference = load_segmentor(weights), Inference(scales=scales, flip=flip)

    def predict(image: Tensor) -> Tensor:
        return segment_image(segmentor, image, PREPROCESSING, inference)[0]

    expected = report(scores(count_confusion(predict, split_of(fields), 3)), NAMES)
    assert evaluated(*options.split()) == expected != evaluated()


def test_confusion_is_drawn_where_asked(evaluated: Callable[..., str], tmp_path: Path) -> None:
    evaluated("--confusion", tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (MARGIN + 3 * CELL, MARGIN + 3 * CELL))


@pytest.mark.parametrize("place", ["confusion.jpg", "confusion", "absent/confusion.png"])
def test_place_where_no_confusion_can_be_drawn_is_refused_first(
    place: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (tmp_path / "absent.safetensors", "--data", tmp_path, "--confusion", tmp_path / place)
    assert run("evaluate", *arguments) == 1
    said = f"evaluate: --confusion {tmp_path / place}: needs the name of a PNG in a folder that exists\n"
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    ("command", "option", "said"),
    [
        *(("train", f"{name}=0", "0 is not above 0") for name in ("--epochs", "--batch-size", "--crop")),
        ("train", "--epochs=-1", "-1 is not above 0"),
        ("train", "--crop=1.5", "invalid"),
        *(("evaluate", f"--scales={value}", "is not between 0 and 10") for value in ("0", "-1", "10", "inf", "nan")),
        ("evaluate", "--scales=large", "invalid"),
    ],
)
def test_option_out_of_range_is_a_usage_error(
    command: str, option: str, said: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--output", tmp_path / "out") if command == "train" else (tmp_path / "weights.safetensors",)
    with pytest.raises(SystemExit) as end:
        run(command, *place, "--data", tmp_path, option)
    assert end.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{command}: error: argument {option.split('=')[0]}: ")
    assert said in last
    assert not (tmp_path / "out").exists()


@pytest.fixture
def spoilt(fields: Path, tmp_path: Path) -> Path:
    return shutil.copytree(fields, tmp_path / "spoilt")


@pytest.mark.parametrize("command", COMMANDS)
def test_mask_value_that_means_nothing_is_one_sentence(
    command: str, spoilt: Path, refused: Callable[[str, Path], str]
) -> None:
    path = spoilt / "valannot" / "a.png"
    mask = np.array(Image.open(path))
    mask[9, 9] = 3
    Image.fromarray(mask).save(path)
    assert f"{path}: value 3 is no class (0 to 2) and not ignored (255)" in refused(command, spoilt)


@pytest.mark.parametrize("command", COMMANDS)
def test_mask_of_another_size_is_one_sentence(command: str, spoilt: Path, refused: Callable[[str, Path], str]) -> None:
    path = spoilt / "valannot" / "a.png"
    Image.open(path).resize((28, 36)).save(path)
    assert f"a.png is 72x56, but {path} 36x28" in refused(command, spoilt)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("missing", ["valannot/a.png", "labels.yaml"])
def test_missing_file_is_one_sentence(
    missing: str, command: str, spoilt: Path, refused: Callable[[str, Path], str]
) -> None:
    (spoilt / missing).unlink()
    assert str(spoilt / missing) in refused(command, spoilt)


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_split_is_one_sentence(command: str, spoilt: Path, refused: Callable[[str, Path], str]) -> None:
    shutil.rmtree(spoilt / "val")
    assert str(spoilt / "val") in refused(command, spoilt)


@pytest.mark.parametrize("command", COMMANDS)
def test_empty_split_is_one_sentence(command: str, spoilt: Path, refused: Callable[[str, Path], str]) -> None:
    for path in (spoilt / "val").iterdir():
        path.unlink()
    assert f"{spoilt / 'val'}: no images there" in refused(command, spoilt)


@pytest.mark.parametrize("command", COMMANDS)
def test_labels_that_are_no_yaml_are_one_sentence(
    command: str, spoilt: Path, refused: Callable[[str, Path], str]
) -> None:
    (spoilt / "labels.yaml").write_text("names: [soil\npalette: {")
    assert f"{spoilt / 'labels.yaml'}: while parsing" in refused(command, spoilt)


@pytest.mark.parametrize("kind", ["last.pt", "--backbone", "--initial"])
def test_junk_instead_of_weights_is_one_sentence(
    kind: str, run: Run, fields: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    junk = tmp_path / "last.pt"  # which is where training looks for a run to go on with
    junk.write_bytes(b"no weights at all")
    output, options = (tmp_path, ()) if kind == "last.pt" else (tmp_path / "out", (kind, junk))
    data = ("--data", fields, "--labels", fields / "labels.yaml")
    assert run("train", *data, "--output", output, *SHORT, *options) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith(f"train: {junk}")


def test_weights_for_other_classes_are_one_sentence(
    run: Run, fields: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = trained / "weights.safetensors"
    assert run("evaluate", weights, "--data", fields) == 1
    assert capsys.readouterr() == ("", f"evaluate: {weights} has 3 classes, the labels 11\n")


def test_too_few_images_for_a_batch_are_one_sentence(
    run: Run, fields: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", fields, "--labels", fields / "labels.yaml")
    assert run("train", *data, "--output", tmp_path, "--batch-size", 3) == 1
    assert capsys.readouterr() == ("", "train: 2 training samples are fewer than one batch of 3\n")
