"""The command line: `python -m app serve | segment | models | convert | export`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import numpy as np

# How often a thread polls before it sleeps, when it waits at an operator's end for the other threads of its pass. The
# default is 300,000 times: if other work holds a core that these threads need, polling keeps them off the remaining
# ones for as long, at each operator. OpenMP reads the variable when torch is imported, so it is set before that.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")

import torch

from app import logs
from app.catalog import Catalog, Unreadable, describe
from app.engine.device import find_device
from app.errors import DeviceError, ServiceError
from app.imaging import decode, encode_ids, encode_palette
from app.main import create_app
from app.server import Server
from app.settings import Settings, SettingsError, load_settings
from models import ModelError, list_models, load_model
from models.conversion import convert
from models.export import export_onnx
from models.inference import segment_image
from models.zoo import PUBLISHED


def main() -> int:
    arguments = _parser().parse_args()
    try:
        settings = load_settings()
        status: int = arguments.run(arguments, settings)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python would fail as it ends
        return 1
    except (SettingsError, DeviceError, ModelError, ServiceError, OSError) as exc:
        print(f"seglens: {exc}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="seglens", description="Semantic segmentation with attention maps.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("serve", help="start the HTTP server; settings come from SEGLENS_* variables")
    command.set_defaults(run=_serve)

    command = commands.add_parser("segment", help="segment one image without a server")
    command.add_argument("image", type=Path)
    command.add_argument("-o", "--output", type=Path, required=True, help="PNG to write: each pixel a class id")
    command.add_argument("--model", help="a name that `models` lists; else the default model")
    command.add_argument("--palette", action="store_true", help="give the PNG the classes' colours; ids stay")
    command.set_defaults(run=_segment)

    command = commands.add_parser("models", help="list the models, bundled and in SEGLENS_MODEL_DIR")
    command.add_argument("--zoo", action="store_true", help="list those that mmsegmentation publishes instead")
    command.set_defaults(run=_models)

    command = commands.add_parser("convert", help="write somebody's checkpoint as one of ours, with what belongs to it")
    command.add_argument("file", type=Path, help="checkpoint; NAME.yaml beside it is heeded")
    command.add_argument("-o", "--output", type=Path, required=True, help="safetensors file to write")
    command.set_defaults(run=_convert)

    command = commands.add_parser("export", help="write a model for other runtimes, right at any size of image")
    command.add_argument("model", help="a name that `models` lists, or a checkpoint's file")
    command.add_argument("--format", choices=["onnx"], default="onnx")
    command.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    command.set_defaults(run=_export)
    return parser


def _serve(arguments: argparse.Namespace, settings: Settings) -> int:
    logs.configure(settings.log_level, settings.log_format)
    app = create_app(settings)
    Server(app, settings).run_until_signalled()
    engine = app.state.services.engine
    status = 1 if engine.state == "failed" or engine.is_stuck else 0
    if engine.is_stuck or engine.models.is_at_work:
        # The interpreter would wait for the device's threads: a batch may never come back, and a load takes minutes.
        logging.shutdown()
        os._exit(status)
    return status


def _segment(arguments: argparse.Namespace, settings: Settings) -> int:
    spec = _catalog(settings).find(arguments.model or settings.default_model)
    pixels = decode(arguments.image.read_bytes(), settings.max_image_pixels)
    segmentor = load_model(spec).to(find_device(settings.device))
    ids, _ = segment_image(segmentor, torch.from_numpy(pixels), spec.preprocessing, spec.inference)
    mask = ids.numpy()
    palette = np.array(spec.classes.palette, dtype=np.uint8)
    arguments.output.write_bytes(encode_palette(mask, palette) if arguments.palette else encode_ids(mask))
    for class_id, area in enumerate(np.bincount(mask.ravel())):
        if area:
            print(f"{spec.classes.names[class_id]:<14}{100 * area / mask.size:6.2f} %")
    return 0


def _models(arguments: argparse.Namespace, settings: Settings) -> int:
    if arguments.zoo:
        for one in PUBLISHED:
            print(
                f"{one.name:<41} {one.data_set.name:<22} {one.backbone:<10} {one.crop:>8}  mIoU {one.miou:.2f}  "
                f"{one.hash_prefix}  {one.file}"
            )
        return 0
    for found in _catalog(settings).look().values():
        mark = "*" if found.name == settings.default_model else " "
        if isinstance(found, Unreadable):
            print(f"{mark} {found.name:<28} cannot be served: {found.reason}")
            continue
        miou = "-" if found.miou is None else f"{found.miou:.2f}"
        print(f"{mark} {found.name:<28} {found.dataset:<30} mIoU {miou:>5}  {found.licence}")
    return 0


def _convert(arguments: argparse.Namespace, settings: Settings) -> int:
    spec = describe(arguments.file)
    convert(spec, arguments.output)
    print(f"{arguments.output}: {spec.title}, {len(spec.classes.names)} classes, {spec.source}")
    return 0


def _export(arguments: argparse.Namespace, settings: Settings) -> int:
    file = Path(arguments.model)
    spec = describe(file) if file.is_file() else _catalog(settings).find(arguments.model)
    export_onnx(spec, arguments.output)
    print(f"{arguments.output}: {spec.title}; image [batch, 3, height, width], RGB of 0 to 255, to logits of its size")
    return 0


def _catalog(settings: Settings) -> Catalog:
    return Catalog(list_models(), settings.model_dir)


if __name__ == "__main__":
    sys.exit(main())
