from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.folding import fold_batch_norm
from models.fused import FusedConv, _late_blocks, _layout, can_fuse, fuse_convolutions, has_bfloat16, tolerates
from models.segmentor import Output, Segmentor

Build = Callable[[str, str], Segmentor]

pytestmark = pytest.mark.skipif(not can_fuse(), reason="this torch has no fused convolutions")
bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16")


def run(segmentor: Segmentor, image: Tensor) -> Output:
    with torch.inference_mode():
        output: Output = segmentor(image)
    return output


def folded(build: Build, backbone: str, head: str) -> Segmentor:
    segmentor = build(backbone, head)
    fold_batch_norm(segmentor)
    return segmentor


def error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    assert got.dtype == want.dtype == torch.float32
    assert want.std() > 0
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("head", ["fcn", "ccnet", "non_local", "ann", "danet", "gcnet", "pspnet"])
@pytest.mark.parametrize("backbone", ["resnet", "mobilenet", "edgetpu"])
@pytest.mark.parametrize("reduced", [False, pytest.param(True, marks=bfloat16)], ids=["float32", "bfloat16"])
def test_fused_network_is_the_same_function(tiny_segmentor: Build, backbone: str, head: str, *, reduced: bool) -> None:
    segmentor = folded(tiny_segmentor, backbone, head)
    fused = deepcopy(segmentor)
    image = torch.randn(1, 3, 64, 48)
    with torch.inference_mode():
        fuse_convolutions(fused, image, reduced=reduced)
    assert not any(isinstance(module, nn.Conv2d) for name, module in fused.named_modules())
    # Another size than weights were laid out for, and more images, are right too.
    for images in (image, torch.randn(2, 3, 65, 80)):
        got, want = run(fused, images), run(segmentor, images)
        assert error(got.logits, want.logits) < (0.3 if reduced else 1e-4)
        assert len(got.traces) == len(want.traces)
        for one, other in zip(got.traces, want.traces, strict=True):
            assert error(one.query, other.query) < (0.3 if reduced else 1e-4)
            assert error(one.key, other.key) < (0.3 if reduced else 1e-4)
    dtypes = {module.weight.dtype for module in fused.modules() if isinstance(module, FusedConv)}
    assert dtypes == ({torch.float32, torch.bfloat16} if reduced else {torch.float32})


@bfloat16
def test_heads_see_float32_and_what_is_between_convolutions_of_a_stage_is_bfloat16() -> None:
    conv = nn.Conv2d(4, 8, 3)
    with torch.inference_mode():
        x = torch.randn(1, 4, 9, 9)
        inside = FusedConv(conv, nn.ReLU(), torch.bfloat16, x.shape)
        at_the_end = FusedConv(conv, nn.ReLU(), torch.bfloat16, x.shape, torch.float32)
        assert inside(x).dtype == torch.bfloat16
        assert at_the_end(x).dtype == torch.float32
        assert (inside(x) == at_the_end(x.bfloat16())).all()


def test_rows_may_go_unpadded() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    x = torch.randn(1, 4, 9, 7)
    with torch.inference_mode():
        fused = FusedConv(conv, nn.ReLU(), torch.float32, x.shape)
        torch.testing.assert_close(fused(x, False), fused(x)[:, :, 1:-1])


@bfloat16
@pytest.mark.parametrize("head", ["fcn", "ccnet"])
def test_only_criss_cross_attention_gets_bfloat16(tiny_segmentor: Build, head: str) -> None:
    segmentor = folded(tiny_segmentor, "mobilenet", head)
    fuse_convolutions(segmentor, torch.randn(1, 3, 64, 48), reduced=True)
    out: dict[str, torch.dtype] = {}
    for name, module in segmentor.decode_head.named_modules():
        if isinstance(module, FusedConv):
            module.register_forward_hook(lambda _, __, result, name=name: out.__setitem__(name, result.dtype))
    run(segmentor, torch.randn(1, 3, 64, 48))
    assert {name for name, dtype in out.items() if dtype == torch.bfloat16} == (
        {"cca.value_conv"} if head == "ccnet" else set()
    )


def test_timed_modules_keep_their_names(tiny_segmentor: Build) -> None:
    segmentor = folded(tiny_segmentor, "mobilenet", "ccnet")
    before = list(segmentor.timed_modules().values())
    fuse_convolutions(segmentor, torch.randn(1, 3, 64, 48), reduced=False)
    assert list(segmentor.timed_modules().values()) == before
    assert segmentor.num_classes == 5


def test_a_projection_that_two_share_is_fused_once(tiny_segmentor: Build) -> None:
    segmentor = folded(tiny_segmentor, "mobilenet", "ann")
    fuse_convolutions(segmentor, torch.randn(1, 3, 64, 48), reduced=False)
    attention = segmentor.get_submodule("decode_head.context.stages.0")
    assert isinstance(attention.query_project, FusedConv)
    assert attention.query_project is attention.key_project


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.3), nn.Identity(), nn.SiLU()], ids=lambda module: str(module)
)
def test_every_activation_is_applied_once(activation: nn.Module) -> None:
    conv = nn.Conv2d(4, 8, 3, stride=2, padding=2, dilation=2, groups=2)
    x = 9 * torch.randn(2, 4, 11, 8)
    with torch.inference_mode():
        want = activation(conv(x))
        assert (want > 6).any() != isinstance(activation, nn.ReLU6)
        torch.testing.assert_close(FusedConv(conv, activation, torch.float32, x.shape)(x), want)


@bfloat16
def test_the_bias_is_not_rounded() -> None:
    conv = nn.Conv2d(8, 8, 1)
    nn.init.constant_(conv.bias, 256.6)  # to bfloat16, 256
    nn.init.constant_(conv.weight, -1)
    with torch.inference_mode():
        out = FusedConv(conv, nn.Identity(), torch.bfloat16, torch.Size((1, 8, 4, 4)))(torch.full((1, 8, 4, 4), 32.0))
    assert out.dtype == torch.bfloat16
    assert out.float().unique().item() == pytest.approx(0.6, rel=0.01)


def test_what_attention_and_classes_are_made_of_is_not_rounded(tiny_segmentor: Build) -> None:
    segmentor = folded(tiny_segmentor, "mobilenet", "ccnet")
    late = _late_blocks(segmentor)
    rounded = {n for n, part in segmentor.named_modules() if isinstance(part, nn.Conv2d) and tolerates(n, part, late)}
    stages = {name.split(".")[1] for name in rounded if name.startswith("backbone.")}
    assert stages == {"layer3", "layer4"}
    blocks = {name.split(".")[2] for name in rounded if name.startswith("backbone.layer3.")}
    assert blocks == {"5", "6"}  # of 0 to 6
    assert {name for name in rounded if name.startswith("decode_head.")} == {
        "decode_head.cca.value_conv",
        "decode_head.convs.0.conv",
        "decode_head.convs.1.conv",
        "decode_head.conv_cat.conv",
    }
    assert {name for name in rounded if name.startswith("decoder.")} == {
        "decoder.stride8.mix.conv",
        "decoder.stride4.mix.conv",
    }


def test_where_ann_joins_maps_is_rounded_and_what_it_attends_with_is_not(tiny_segmentor: Build) -> None:
    segmentor = folded(tiny_segmentor, "mobilenet", "ann")
    late = _late_blocks(segmentor)
    rounded = {n for n, part in segmentor.named_modules() if isinstance(part, nn.Conv2d) and tolerates(n, part, late)}
    assert {name for name in rounded if name.startswith("decode_head.")} == {
        "decode_head.fusion.bottleneck.conv",
        "decode_head.bottleneck.conv",
        "decode_head.context.bottleneck.conv",
    }


@pytest.mark.usefixtures("_threads_put_back")
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=bfloat16)], ids=str)
@pytest.mark.parametrize(
    ("conv", "height"),
    [(nn.Conv2d(160, 960, 1), 30), (nn.Conv2d(32, 32, 3, padding=1, groups=32), 240), (nn.Conv2d(128, 64, 3), 60)],
    ids=["wide", "depthwise", "dense"],
)
def test_weights_are_laid_out_where_flatter_inputs_want_the_same(
    conv: nn.Conv2d, height: int, dtype: torch.dtype
) -> None:
    width = height * 4 // 3
    shapes = [(tall, width) for tall in (height, -(-height * 3 // 4), height * 2 // 3)]  # 4:3, 16:9 and 2:1
    weight = conv.weight.detach().to(dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        wanted: list[set[bytes]] = [set(), set()]
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for shape in shapes:
                laid_out = torch.ops.mkldnn._reorder_convolution_weight(
                    weight, list(conv.padding), [1, 1], [1, 1], conv.groups, [1, conv.in_channels, *shape]
                )
                wanted[threads - 1].add(_layout(laid_out))
        fused = FusedConv(conv, nn.Identity(), dtype, torch.Size((1, conv.in_channels, *shapes[0])), threads=(1, 2))
    for layouts, kept in zip(wanted, (fused.weight, fused.weight_alone), strict=True):
        assert kept.is_mkldnn == (len(layouts) == 1)
        assert layouts == {_layout(kept)} if kept.is_mkldnn else torch.equal(kept, weight)
    assert (fused.weight is fused.weight_alone) == (_layout(fused.weight) == _layout(fused.weight_alone))


@pytest.mark.usefixtures("_threads_put_back")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux alone lists threads")
def test_no_thread_that_computes_on_several_cores_is_left(tiny_segmentor: Callable[[str, str], Segmentor]) -> None:
    segmentor = tiny_segmentor("mobilenet", "ccnet")
    fold_batch_norm(segmentor)
    image = torch.randn(1, 3, 64, 48)
    with ThreadPoolExecutor(1) as caller:
        caller.submit(torch.set_num_threads, 1).result()
        threads = len(list(Path("/proc/self/task").iterdir()))
        caller.submit(fuse_convolutions, segmentor, image, reduced=False, threads=(1, 2)).result()
        assert caller.submit(torch.get_num_threads).result() == 1
        # The last of them end by themselves.
        ends = time.monotonic() + 10
        while len(list(Path("/proc/self/task").iterdir())) > threads and time.monotonic() < ends:
            time.sleep(0.01)
        assert len(list(Path("/proc/self/task").iterdir())) <= threads
