from __future__ import annotations

import pytest

from models.card import NOTHING_SAID, Card
from models.errors import CheckpointError
from models.mmseg_meta import of_meta, options_of_meta

# As mmsegmentation 0.x writes it, shortened.
OLD = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    backbone=dict(
        type='ResNetV1c', depth=50, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), contract_dilation=True),
    decode_head=dict(type='CCHead', in_channels=2048, recurrence=2, num_classes=2, align_corners=True),
    test_cfg=dict(mode='slide', crop_size=(769, 769), stride=(513, 513)))
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [dict(type='Resize', img_scale=(999, 99), ratio_range=(0.5, 2.0))]
test_pipeline = []
data = dict(
    samples_per_gpu=2,
    train=dict(pipeline=[dict(type='Resize', img_scale=(999, 99))]),
    test=dict(
        type='CityscapesDataset',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                type='MultiScaleFlipAug',
                img_scale=(2049, 1025),
                flip=False,
                transforms=[dict(type='Resize', keep_ratio=True), dict(type='RandomFlip')])
        ]))
lr_config = dict(policy='poly', power=0.9, min_lr=1e-4, by_epoch=False)
"""
# As 1.x writes it.
NEW = """
crop_size = (512, 1024)
data_preprocessor = dict(mean=[1, 2, 3])
model = dict(
    data_preprocessor=dict(bgr_to_rgb=False, mean=[103.5, 116.3, 123.7], std=[1.0, 1.0, 1.0], size=(512, 1024)),
    decode_head=dict(align_corners=False, norm_cfg=dict(type='SyncBN')),
    test_cfg=dict(mode='whole'),
    train_cfg=dict())
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(keep_ratio=True, scale=(1024, 2048), type='Resize'),
]
test_dataloader = dict(batch_size=1, dataset=dict(pipeline=[]))
"""
# Before test_cfg was moved into the model.
FIRST = "model = dict(decode_head=dict(align_corners=False))\ntest_cfg = dict(mode='whole')\ntrain_cfg = dict()\n"


def test_of_0_x() -> None:
    meta = {"config": OLD, "CLASSES": ("crop", "weed"), "PALETTE": [[0, 1, 2], [3, 4, 5]], "iter": 7}
    assert of_meta(meta) == Card(
        classes=("crop", "weed"),
        palette=((0, 1, 2), (3, 4, 5)),
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
        bgr=False,
        scale=(2049, 1025),
        mode="slide",
        crop=(769, 769),
        stride=(513, 513),
        align_corners=True,
    )


def test_of_1_x_blue_first() -> None:
    """Means are in the order of the network's input there, and in RGB with us."""
    meta = {"cfg": NEW, "dataset_meta": {"classes": ["crop", "weed"], "palette": [[0, 1, 2], [3, 4, 5]]}}
    assert of_meta(meta) == Card(
        classes=("crop", "weed"),
        palette=((0, 1, 2), (3, 4, 5)),
        mean=(123.7, 116.3, 103.5),
        std=(1.0, 1.0, 1.0),
        bgr=True,
        scale=(2048, 1024),
        mode="whole",
        align_corners=False,
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("model = dict(data_preprocessor=dict(PIXELS))", Card(mean=(3, 2, 1), std=(6, 5, 4), bgr=True)),
        ("model = dict(data_preprocessor=dict(PIXELS, **common))", Card(mean=(1, 2, 3), std=(4, 5, 6))),
        ("img_norm_cfg = dict(PIXELS)", Card(mean=(1, 2, 3), std=(4, 5, 6))),
        (
            "img_norm_cfg = dict(mean=[7, 8, 9], std=[7, 8, 9], to_rgb=True)\n"
            "data = dict(test=dict(pipeline=[dict(transforms=[dict(type='Normalize', PIXELS, to_rgb=False)])]))",
            Card(mean=(3, 2, 1), std=(6, 5, 4), bgr=True),
        ),
        (
            "img_norm_cfg = dict(PIXELS)\ntest_pipeline = [dict(type='Normalize', **img_norm_cfg)]",
            Card(mean=(1, 2, 3), std=(4, 5, 6)),
        ),
    ],
)
def test_how_values_are_normalised(config: str, expected: Card) -> None:
    """1.x leaves channels as they are read, blue first, 0.x turns them; the pipeline is what 0.x goes by."""
    assert of_meta({"cfg": config.replace("PIXELS", "mean=[1, 2, 3], std=[4, 5, 6]")}) == expected


def test_of_the_first_versions() -> None:
    assert of_meta({"config": FIRST}) == Card(mode="whole", align_corners=False)


@pytest.mark.parametrize(
    "goes_by", ["test_dataloader = dict(dataset=dict(pipeline=STEPS))", "data = dict(test=dict(pipeline=STEPS))"]
)
def test_a_variable_that_was_changed_later_is_not_what_a_test_goes_by(goes_by: str) -> None:
    steps = "[dict(type='Resize', scale=(SIZE, 32), keep_ratio=True)]"
    config = f"test_pipeline = {steps.replace('SIZE', '999')}\n{goes_by.replace('STEPS', steps.replace('SIZE', '64'))}"
    assert of_meta({"cfg": config}) == Card(scale=(64, 32))


@pytest.mark.parametrize("keep", [", keep_ratio=False", ""])
def test_a_resize_that_changes_the_ratio_is_no_scale(keep: str) -> None:
    assert of_meta({"cfg": f"test_pipeline = [dict(type='Resize', scale=(64, 32){keep})]"}) == NOTHING_SAID


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"config": "model = dict("},
        {"config": 7, "CLASSES": "road", "PALETTE": "random"},
        {"config": "x = " + "(" * 1000 + ")" * 1000},
        {"config": "x = " + "-" * 100_000 + "1"},
        {"config": "a\x00b = 1"},
        {"config": "model = dict(**{'decode_head': 1}, test_cfg=[])\nimg_norm_cfg = dict(mean=[1, 2], std='x')"},
        {"config": "model, test_cfg = 1, 2\ntest_cfg.mode = 'slide'\ndata = {'test': None, **{}}"},
        {"config": "test_cfg = open('/etc/passwd')", "dataset_meta": {"classes": None, "palette": [[1]]}},
        {"config": "data_preprocessor = 1", "CLASSES": ["half \ud83d"]},
        {"config": "test_pipeline = [7, dict(type='Resize', scale=(True, 1)), dict(transforms=3)]"},
    ],
)
def test_what_is_not_of_the_right_form_is_not_said(meta: dict[str, object]) -> None:
    assert of_meta(meta) == NOTHING_SAID


# --- the architecture


def test_what_shapes_do_not_tell() -> None:
    assert options_of_meta({"config": OLD}) == {
        "recurrence": "2",
        "align_corners": "True",
        "contract_dilation": "True",
    }
    assert options_of_meta({"cfg": NEW}) == {"align_corners": "False"}
    backbone = "strides=unknown, dilations=(1, 1, 2, 4), contract_dilation=True"
    assert options_of_meta({"cfg": f"model = dict(backbone=dict({backbone}))"}) == {"contract_dilation": "True"}
    assert options_of_meta({}) == options_of_meta({"config": "model = 7"}) == {}


def test_what_a_resnet_leaves_out_is_as_mmsegmentation_takes_it() -> None:
    """Its dilation is contracted only if it says so; what `**` brings isn't known, nor of which kind it is without."""
    for kind in ("ResNetV1c", "mmseg.ResNetV1c", "mmseg.models.backbones.resnet.ResNetV1c"):
        whole = f"type='{kind}', strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)"
        assert options_of_meta({"cfg": f"model = dict(backbone=dict({whole}))"}) == {"contract_dilation": "False"}
    for unknown in ("type='ResNet', **common", "depth=101"):
        assert options_of_meta({"cfg": f"model = dict(backbone=dict({unknown}))"}) == {}
    with pytest.raises(CheckpointError, match=r"the backbone strides of \[1, 2, 2, 2\]; we know \[1, 2, 1, 1\]"):
        options_of_meta({"cfg": "model = dict(backbone=dict(type='ResNetV1d', depth=50))"})


@pytest.mark.parametrize("said", ["strides=(1, 2, 2, 1)", "dilations=(1, 1, 1, 2)"])
def test_a_backbone_at_another_stride_is_refused(said: str) -> None:
    with pytest.raises(CheckpointError, match=f"its configuration gives the backbone {said.split('=')[0]} of"):
        options_of_meta({"config": f"model = dict(backbone=dict({said}))"})


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("backbone=dict(style='caffe')", "the backbone style of caffe; we know pytorch"),
        ("backbone=dict(multi_grid=(1, 2, 4))", r"multi_grid of \[1, 2, 4\]; we know None"),
        ("backbone=dict(norm_cfg=dict(type='BN', eps=0.001))", "the backbone eps of 0.001; we know 1e-05"),
        ("decode_head=dict(norm_cfg=dict(type='BN', eps=0.001))", "the head eps of 0.001"),
        ("decode_head=dict(pool_scales=(1, 2, 4, 8))", r"the head pool_scales of \[1, 2, 4, 8\]; we know"),
        ("decode_head=dict(key_pool_scales=(1, 2))", r"key_pool_scales of \[1, 2\]; we know \[1, 3, 6, 8\]"),
        ("decode_head=dict(query_scales=(1, 2))", "query_scales"),
        ("decode_head=dict(mode='dot_product')", "mode of dot_product; we know embedded_gaussian"),
        ("decode_head=dict(use_scale=False)", "use_scale"),
        ("decode_head=dict(pooling_type='avg')", "pooling_type"),
        ("decode_head=dict(act_cfg=dict(type='LeakyReLU'))", "act_cfg"),
    ],
)
def test_a_network_that_would_load_and_be_another_is_refused(said: str, sentence: str) -> None:
    with pytest.raises(CheckpointError, match=f"its configuration gives .*{sentence}"):
        options_of_meta({"config": f"model = dict({said})"})


def test_what_mmsegmentations_own_configurations_give_is_known() -> None:
    backbone = "depth=50, style='pytorch', strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True"
    for head in (
        "type='NLHead', channels=512, dropout_ratio=0.1, reduction=2, use_scale=True, mode='embedded_gaussian'",
        "type='ANNHead', in_index=[2, 3], project_channels=256, query_scales=(1, ), key_pool_scales=(1, 3, 6, 8)",
        "type='GCHead', ratio=1 / 4., pooling_type='att', fusion_types=('channel_add', )",
        "type='PSPHead', in_index=3, pool_scales=(1, 2, 3, 6)",
        "type='CCHead', recurrence=2",
        "type='DAHead', pam_channels=64",
    ):
        options_of_meta({"config": f"model = dict(backbone=dict({backbone}), decode_head=dict({head}))"})
