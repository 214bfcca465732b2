"""The checkpoints of CCNet, ANN and Non-local that mmsegmentation publishes: one table.

mIoU is on the data set's val split, single scale, as mmsegmentation says. The last eight digits of a file's name are
the first of its SHA-256.
"""

from __future__ import annotations

from typing import NamedTuple

from models.data_sets import ADE20K, CITYSCAPES, VOC, DataSet

HEADS = {"ccnet": "CCNet", "ann": "ANN", "nonlocal": "Non-local"}
DATA = {"cityscapes": CITYSCAPES, "ade20k": ADE20K, "voc12aug": VOC}


class Published(NamedTuple):
    """
    Attributes:
        crop: height x width that it was trained on
        stamp: when it was trained, and the first digits of its hash
    """

    head: str
    depth: int
    data: str
    crop: str
    schedule: str
    miou: float
    stamp: str

    @property
    def name(self) -> str:
        return f"{self.head}_r{self.depth}-d8_{self.crop}_{self.schedule}_{self.data}"

    @property
    def file(self) -> str:
        return f"{self.name}_{self.stamp}.pth"

    @property
    def hash_prefix(self) -> str:
        return self.stamp.rpartition("-")[2]

    @property
    def data_set(self) -> DataSet:
        return DATA[self.data]

    @property
    def backbone(self) -> str:
        return f"ResNet-{self.depth}"

    @property
    def title(self) -> str:
        return f"{HEADS[self.head]}, {self.backbone}, {self.data_set.name}, {self.crop}, {self.schedule}"

    @property
    def slides(self) -> bool:
        """Trained on squares of 769 pixels, and evaluated with windows of as many, corners aligned."""
        return self.crop == "769x769"


PUBLISHED = (
    Published("ccnet", 50, "cityscapes", "512x1024", "40k", 77.76, "20200616_142517-4123f401"),
    Published("ccnet", 101, "cityscapes", "512x1024", "40k", 76.35, "20200616_142540-a3b84ba6"),
    Published("ccnet", 50, "cityscapes", "769x769", "40k", 78.46, "20200616_145125-76d11884"),
    Published("ccnet", 101, "cityscapes", "769x769", "40k", 76.94, "20200617_101428-4f57c8d0"),
    Published("ccnet", 50, "cityscapes", "512x1024", "80k", 79.03, "20200617_010421-869a3423"),
    Published("ccnet", 101, "cityscapes", "512x1024", "80k", 78.87, "20200617_203935-ffae8917"),
    Published("ccnet", 50, "cityscapes", "769x769", "80k", 79.29, "20200617_010421-73eed8ca"),
    Published("ccnet", 101, "cityscapes", "769x769", "80k", 79.45, "20200618_011502-ad3cd481"),
    Published("ccnet", 50, "ade20k", "512x512", "80k", 41.78, "20200615_014848-aa37f61e"),
    Published("ccnet", 101, "ade20k", "512x512", "80k", 43.97, "20200615_014848-1f4929a3"),
    Published("ccnet", 50, "ade20k", "512x512", "160k", 42.08, "20200616_084435-7c97193b"),
    Published("ccnet", 101, "ade20k", "512x512", "160k", 43.71, "20200616_000644-e849e007"),
    Published("ccnet", 50, "voc12aug", "512x512", "20k", 76.17, "20200617_193212-fad81784"),
    Published("ccnet", 101, "voc12aug", "512x512", "20k", 77.27, "20200617_193212-0007b61d"),
    Published("ccnet", 50, "voc12aug", "512x512", "40k", 75.96, "20200613_232127-c2a15f02"),
    Published("ccnet", 101, "voc12aug", "512x512", "40k", 77.87, "20200613_232127-c30da577"),
    Published("ann", 50, "cityscapes", "512x1024", "40k", 77.4, "20200605_095211-049fc292"),
    Published("ann", 101, "cityscapes", "512x1024", "40k", 76.55, "20200605_095243-adf6eece"),
    Published("ann", 50, "cityscapes", "769x769", "40k", 78.89, "20200530_025712-2b46b04d"),
    Published("ann", 101, "cityscapes", "769x769", "40k", 79.32, "20200530_025720-059bff28"),
    Published("ann", 50, "cityscapes", "512x1024", "80k", 77.34, "20200607_101911-5a9ad545"),
    Published("ann", 101, "cityscapes", "512x1024", "80k", 77.14, "20200607_013728-aceccc6e"),
    Published("ann", 50, "cityscapes", "769x769", "80k", 78.88, "20200607_044426-cc7ff323"),
    Published("ann", 101, "cityscapes", "769x769", "80k", 78.8, "20200607_013713-a9d4be8d"),
    Published("ann", 50, "ade20k", "512x512", "80k", 41.01, "20200615_014818-26f75e11"),
    Published("ann", 101, "ade20k", "512x512", "80k", 42.94, "20200615_014818-c0153543"),
    Published("ann", 50, "ade20k", "512x512", "160k", 41.74, "20200615_231733-892247bc"),
    Published("ann", 101, "ade20k", "512x512", "160k", 42.94, "20200615_231733-955eb1ec"),
    Published("ann", 50, "voc12aug", "512x512", "20k", 74.86, "20200617_222246-dfcb1c62"),
    Published("ann", 101, "voc12aug", "512x512", "20k", 77.47, "20200617_222246-2fad0042"),
    Published("ann", 50, "voc12aug", "512x512", "40k", 76.56, "20200613_231314-b5dac322"),
    Published("ann", 101, "voc12aug", "512x512", "40k", 76.7, "20200613_231314-bd205bbe"),
    Published("nonlocal", 50, "cityscapes", "512x1024", "40k", 78.24, "20200605_210748-c75e81e3"),
    Published("nonlocal", 101, "cityscapes", "512x1024", "40k", 78.66, "20200605_210748-d63729fa"),
    Published("nonlocal", 50, "cityscapes", "769x769", "40k", 78.33, "20200530_045243-82ef6749"),
    Published("nonlocal", 101, "cityscapes", "769x769", "40k", 78.57, "20200530_045348-8fe9a9dc"),
    Published("nonlocal", 50, "cityscapes", "512x1024", "80k", 78.01, "20200607_193518-d6839fae"),
    Published("nonlocal", 101, "cityscapes", "512x1024", "80k", 78.93, "20200607_183411-32700183"),
    Published("nonlocal", 50, "cityscapes", "769x769", "80k", 79.05, "20200607_193506-1f9792f6"),
    Published("nonlocal", 101, "cityscapes", "769x769", "80k", 79.4, "20200607_183428-0e1fa4f9"),
    Published("nonlocal", 50, "ade20k", "512x512", "80k", 40.75, "20200615_015801-5ae0aa33"),
    Published("nonlocal", 101, "ade20k", "512x512", "80k", 42.9, "20200615_015758-24105919"),
    Published("nonlocal", 50, "ade20k", "512x512", "160k", 42.03, "20200616_005410-baef45e3"),
    Published("nonlocal", 101, "ade20k", "512x512", "160k", 44.63, "20210827_221502-7881aa1a"),
    Published("nonlocal", 50, "voc12aug", "512x512", "20k", 76.2, "20200617_222613-07f2a57c"),
    Published("nonlocal", 101, "voc12aug", "512x512", "20k", 78.15, "20200617_222615-948c68ab"),
    Published("nonlocal", 50, "voc12aug", "512x512", "40k", 76.65, "20200614_000028-0139d4a9"),
    Published("nonlocal", 101, "voc12aug", "512x512", "40k", 78.27, "20200614_000028-7e5ff470"),
)


def of_file_name(name: str) -> Published | None:
    """Which published checkpoint is called so, if one is."""
    return next((published for published in PUBLISHED if published.file == name), None)
