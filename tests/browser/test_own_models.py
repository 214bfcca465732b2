"""The page before a server with checkpoints of one's own: one without attention, and one that can't be read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from playwright.sync_api import Page, expect

from models.backbones.resnet import ResNet
from models.checkpoint import save_segmentor
from models.heads.pspnet import PSPHead
from models.segmentor import Segmentor
from tests.browser.conftest import SAMPLE, Opened, click, pixels
from tests.conftest import Serving

CCNET = "ccnet-mobilenetv2-camvid"
NO_ATTENTION = "There is no attention to show"


@pytest.fixture(scope="module")
def url(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    segmentor = Segmentor(ResNet(stem_channels=(4, 8), planes=(4, 8, 16, 32)), PSPHead(128, 16, 11)).eval()
    save_segmentor(segmentor, folder / "pspnet.safetensors", {})
    (folder / "broken.safetensors").write_bytes(b"no checkpoint")
    with serving(model_dir=str(folder), models=f"{CCNET},pspnet") as served:
        yield served.url


def choose(page: Page) -> None:
    page.set_input_files("#file", SAMPLE)
    page.locator("#legend .class").first.wait_for()


def test_a_model_without_attention_shows_its_mask(opened: Opened) -> None:
    page = opened("#model=pspnet")
    choose(page)
    assert (pixels(page.locator("#mask-stage .overlay"))[..., 3] == 255).all()
    expect(page.locator("#heat-hint")).to_contain_text(NO_ATTENTION)
    expect(page.locator("#heat-stage")).to_be_hidden()
    expect(page.locator("#readout")).to_be_hidden()
    expect(page.locator("#legend .ask")).to_have_count(0)
    expect(page.locator("#downloads a")).to_have_count(4)  # of the mask
    click(page.locator("#mask-stage .panel"), 0.3, 0.7)
    expect(page.locator("#said")).to_contain_text("Point")
    page.locator("#legend .class").first.click()
    assert (pixels(page.locator("#mask-stage .overlay"))[..., 3] == 0).any()
    page.locator("#mask").fill("0.3")
    expect(page.locator("#mask-stage .overlay")).to_have_css("opacity", "0.3")
    expect(page.locator("#settings select, #settings #heat")).to_have_count(5)
    for setting in page.locator("#settings select, #settings #heat").all():
        expect(setting).to_be_hidden()
    page.locator("#model").select_option(CCNET)
    page.locator("#heat-stage .overlay[data-cell]").wait_for()
    expect(page.locator("#heat-hint")).not_to_contain_text(NO_ATTENTION)
    expect(page.locator("#direction")).to_be_visible()
    expect(page.locator("#problem")).to_be_hidden()


def test_it_is_compared_with_one_that_has(opened: Opened) -> None:
    page = opened("#view=many")
    page.set_input_files("#file", SAMPLE)
    page.locator("#many .overlay[data-cell]").wait_for()
    cards = page.locator("#many .card[data-model]")
    expect(cards).to_have_count(2)  # neither what can't be read nor what is not loaded
    own = page.locator('#many .card[data-model="pspnet"]')
    expect(own).to_contain_text(NO_ATTENTION)
    expect(own.locator("h3 small")).not_to_contain_text("mIoU")  # nobody has said
    expect(page.locator(f'#many .card[data-model="{CCNET}"] h3 small')).to_contain_text("mIoU")
    assert np.all(pixels(own.locator(".overlay"))[..., 3] == 255)
    expect(page.locator("#problem")).to_be_hidden()


def test_models_that_are_not_ready_cannot_be_chosen(opened: Opened) -> None:
    page = opened("#model=broken")
    choose(page)
    expect(page.locator("#model")).to_have_value(CCNET)
    broken = page.locator('#model option[value="broken"]')
    expect(broken).to_be_disabled()
    expect(broken).to_contain_text("(failed)")
    expect(page.locator('#model option[value="ann-mobilenetv2-camvid"]')).to_have_text(
        "ANN, MobileNetV2, CamVid (not loaded)"
    )
    expect(page.locator('#model option[value="pspnet"]')).to_be_enabled()
