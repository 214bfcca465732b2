"""What a checkpoint of mmsegmentation says of itself: classes, and the configuration that it was trained with.

The configuration is Python text (`meta['config']` in 0.x, `meta['cfg']` in 1.x). It is parsed and never run: names that
are given literals or `dict(...)` are read, all else is passed over.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from models.card import Card, choice, colors, names, pair, triple, truth
from models.errors import CheckpointError

Values = Mapping[str, object]

# What is fixed in our networks. A configuration may say otherwise, and the tensors' shapes would not show it.
BACKBONE: Values = {
    "strides": [1, 2, 1, 1],
    "dilations": [1, 1, 2, 4],
    "style": "pytorch",
    "multi_grid": None,
    "eps": 1e-5,
}
HEAD: Values = {
    "eps": 1e-5,
    "act_cfg": {"type": "ReLU"},
    "dilation": 1,
    # ANN, PSPNet
    "query_scales": [1],
    "key_pool_scales": [1, 3, 6, 8],
    "pool_scales": [1, 2, 3, 6],
    # Non-local
    "mode": "embedded_gaussian",
    "use_scale": True,
    # GCNet
    "pooling_type": "att",
    "fusion_types": ["channel_add"],
}
# mmsegmentation's defaults for a ResNet whose configuration leaves these out. For heads its defaults are ours.
RESNETS = ("ResNet", "ResNetV1c", "ResNetV1d")
RESNET_DEFAULTS: Values = {"strides": [1, 2, 2, 2], "dilations": [1, 1, 1, 1], "contract_dilation": False}


def of_meta(meta: Values) -> Card:
    """What `meta` says; values of the wrong form are left out, since people write into it what they like."""
    data_set = _mapping(meta.get("dataset_meta"))
    config = _assignments(meta.get("config", meta.get("cfg")))
    model = _mapping(config.get("model"))
    test = _mapping(model.get("test_cfg", config.get("test_cfg")))
    norm = _norm(config, model)
    rgb = truth(norm.get("bgr_to_rgb", norm.get("to_rgb")))
    mean, std = triple(norm.get("mean")), triple(norm.get("std"))
    if rgb is False:  # then these are in the order of the network's input, blue first
        mean, std = (values and values[::-1] for values in (mean, std))
    return Card(
        classes=names(meta.get("CLASSES", data_set.get("classes"))),
        palette=colors(meta.get("PALETTE", data_set.get("palette"))),
        mean=mean,
        std=std,
        bgr=None if rgb is None else not rgb,
        scale=_test_scale(config),
        mode=choice("mode", test.get("mode")),
        crop=pair(test.get("crop_size")),
        stride=pair(test.get("stride")),
        align_corners=truth(_mapping(model.get("decode_head")).get("align_corners")),
    )


def options_of_meta(meta: Values) -> dict[str, str]:
    """What the configuration says of the architecture that shapes don't tell, as a header of ours would say it.

    Raises:
        CheckpointError: a network that would load and be another, since its shapes are the same
    """
    model = _mapping(_assignments(meta.get("config", meta.get("cfg"))).get("model"))
    head, backbone = _mapping(model.get("decode_head")), _mapping(model.get("backbone"))
    kind = str(backbone.get("type")).rpartition(".")[2]  # after the package, if that is said
    if kind in RESNETS and None not in backbone:  # without a `**`, which may say what seems left out
        backbone = {**RESNET_DEFAULTS, **backbone}
    for part, values, known in (("backbone", backbone, BACKBONE), ("head", head, HEAD)):
        given = {**values, "eps": _mapping(values.get("norm_cfg")).get("eps")}
        for name, ours in known.items():
            if given.get(name) not in (None, ours):
                raise CheckpointError(f"its configuration gives the {part} {name} of {given[name]}; we know {ours}")
    said = {
        "recurrence": head.get("recurrence"),
        "align_corners": head.get("align_corners"),
        "contract_dilation": backbone.get("contract_dilation"),
    }
    return {name: str(value) for name, value in said.items() if value is not None}


def _assignments(text: object) -> dict[str, object]:
    """Names that the text gives values, with the values that are literals, else None."""
    try:
        tree = ast.parse(text) if isinstance(text, str) else ast.Module([], [])
    # Deeply nested text exhausts the parser, which says so in one of several ways.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found: dict[str, object] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name):
            found[target.id] = _literal(node.value)
    return found


def _literal(node: ast.expr) -> object:
    """A literal's value, `dict(...)` among them; None of anything else."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(part) for part in node.elts]
    if isinstance(node, ast.Dict):
        return {
            key.value: _literal(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        }
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    return None


def _norm(config: Values, model: Values) -> Values:
    """How values are normalised for a test: 1.x has it in the model, 0.x in the pipeline, mostly from one variable."""
    preprocessor = _mapping(model.get("data_preprocessor"))
    if "mean" in preprocessor:
        # Unless asked to turn them, it leaves images as they are read, blue first. What `**` brings isn't known.
        return preprocessor if None in preprocessor else {"bgr_to_rgb": False, **preprocessor}
    return next((step for step in _test_steps(config) if "mean" in step), _mapping(config.get("img_norm_cfg")))


def _test_scale(config: Values) -> tuple[int, int] | None:
    """(long side, short side) to which images are resized for a test, if with their ratio kept."""
    for step in _test_steps(config):
        # In 0.x a test keeps the ratio unless told otherwise, in 1.x it does not.
        scale = pair(step.get("img_scale")) or (pair(step.get("scale")) if step.get("keep_ratio") is True else None)
        if scale is not None and step.get("keep_ratio") is not False:
            return max(scale), min(scale)
    return None


def _test_steps(config: Values) -> Iterator[Values]:
    """The steps of the pipeline that a test goes by; the variable that it was made from may have been changed since."""
    old = _mapping(_mapping(config.get("data")).get("test"))
    new = _mapping(_mapping(config.get("test_dataloader")).get("dataset"))
    return _steps(old.get("pipeline") or new.get("pipeline") or config.get("test_pipeline"))


def _steps(pipeline: object) -> Iterator[Values]:
    """A pipeline's steps, each before those within it."""
    for step in pipeline if isinstance(pipeline, list) else []:
        if isinstance(step, dict):
            yield step
            yield from _steps(step.get("transforms"))


def _mapping(value: object) -> Values:
    return value if isinstance(value, dict) else {}
