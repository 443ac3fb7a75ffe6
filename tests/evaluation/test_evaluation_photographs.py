"""Photographs of odd sizes and kinds: nothing is padded, memory is bounded, and the posteriors are the plain ones."""

import io
import tarfile

import numpy as np
import pytest
import torch
from evaluation_nets import tiny_net
from PIL import Image
from tiny import shared

from vggrepro.config.settings import Evaluation
from vggrepro.data.images.index import Index
from vggrepro.data.images.scan import scan_folder
from vggrepro.data.loading.loader import Loader
from vggrepro.evaluation.methods import METHODS, uncropped_views
from vggrepro.models.vgg import VGG

ODD = {
    "grey": "val/grayscale/imagenet_n02692877_airship.JPEG",
    "cmyk": "val/cmyk/ycck_photo.JPEG",
    "progressive": "val/progressive/imagenet_prog_n03249569_9406_drum.JPEG",
    "slide rule": "val/extreme_aspect/imagenet_extreme_n04238763_slide_rule.JPEG",
    "tusker": "val/tiny_dims/imagenet_smallest_n01871265_tusker.JPEG",
    "rotated": "val/exif_rotated/imagenet_exif6_n02951585_can_opener.JPEG",
}
Q, BATCH = 64, 64
PIXELS = BATCH * 32**2


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Odd photographs, and a grey 27x800, a CMYK 5000x400 and an RGB 400x5000 made of one of them."""
    root = tmp_path_factory.mktemp("photographs")
    with tarfile.open(shared("hard-files.tar")) as opened:
        for split in ("train", "val"):
            for number, name in enumerate(ODD.values()):
                member = opened.extractfile(name)
                assert member is not None
                file = root / split / f"class{number % 3}" / f"{number}.JPEG"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(member.read())
    with Image.open(root / "val" / "class0" / "0.JPEG") as opened_image:
        photograph = opened_image.convert("RGB")
    for number, (size, mode) in enumerate({(27, 800): "L", (5000, 400): "CMYK", (400, 5000): "RGB"}.items()):
        photograph.resize(size).convert(mode).save(root / "val" / f"class{number}" / f"made{number}.JPEG", quality=95)
    return scan_folder(root)


@pytest.mark.parametrize("method", ["dense", "multicrop", "centre"])
def test_equals_the_plain_computation_within_the_memory(photographs: Index, loader: Loader, method: str) -> None:
    net, split = tiny_net(net="D"), photographs.split("val")
    assert len(split) == len(ODD) + 3
    seen: list[int] = []
    net.features[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].numel() // 3))
    settings = Evaluation(flip=True, batch=BATCH)
    with torch.inference_mode():
        for batch in loader.batches(split, uncropped_views(split, Q, BATCH // 2, 32)):
            assert batch.images.shape[2:] == batch.views.shape, "padded"
            found = METHODS[method](net, batch.images, settings).numpy()
            largest, count = max(seen), len(seen)
            assert largest <= PIXELS, f"{largest} px in one pass of the net"
            for row, number in enumerate(batch.views.image):
                with Image.open(io.BytesIO(split.read(number))) as opened:
                    image = opened.convert("RGB").resize(batch.views.shape[::-1], Image.Resampling.BILINEAR)
                pixels = np.asarray(image, np.float32) - np.array(loader.mean, np.float32)
                expected = plainly(net, method, torch.from_numpy(pixels).permute(2, 0, 1)[None])
                np.testing.assert_allclose(found[row], expected.numpy(), rtol=1e-2, atol=1e-3)
            del seen[count:]


def plainly(net: VGG, method: str, images: torch.Tensor) -> torch.Tensor:
    """Applies the modules of the plain net to an uncropped image and its mirror image."""
    if method == "dense":
        views = [net.features(view) for view in (images, images.flip(3))]
        return torch.stack(
            [net.classifier(maps.flatten(2).mT.squeeze(0)).mean(dim=0).softmax(dim=0) for maps in views]
        ).mean(dim=0)
    height, width = images.shape[2:]
    if method == "centre":
        top, left = (height - 32) // 2, (width - 32) // 2
        return net(images[:, :, top : top + 32, left : left + 32])[0].softmax(dim=0)
    corners = [
        (round(i * (height - 32) / 4 + 1e-9), round(j * (width - 32) / 4 + 1e-9)) for i in range(5) for j in range(5)
    ]
    crops = [images[:, :, top : top + 32, left : left + 32] for top, left in corners]
    return torch.stack([net(view)[0].softmax(dim=0) for crop in crops for view in (crop, crop.flip(3))]).mean(dim=0)
