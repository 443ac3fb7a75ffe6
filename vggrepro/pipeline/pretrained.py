"""A trained net with all that it takes to use it, from whatever file it lies in, on images in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from vggrepro.config.settings import Evaluation
from vggrepro.data.decode import rgb
from vggrepro.data.views import rescaled_size
from vggrepro.errors import UserError
from vggrepro.evaluation.methods import dense
from vggrepro.models.dense import class_scores, score_map
from vggrepro.models.precision import set_arithmetic
from vggrepro.models.vgg import VGG
from vggrepro.models.weights import Preprocessing, read
from vggrepro.paper import ilsvrc_classes, value
from vggrepro.pipeline.weights import checkpoint_of
from vggrepro.storage import checkpoint
from vggrepro.storage.hub import weight_file
from vggrepro.storage.status import locate
from vggrepro.training.stage import net_of


@dataclass(frozen=True)
class Pretrained:
    """A trained net with all that it takes to use it."""

    net: VGG
    """In evaluation mode."""
    mean: tuple[float, float, float]
    """Subtracted from RGB grey levels 0-255."""
    std: tuple[float, float, float]
    """What they are then divided by; ones in the paper."""
    classes: tuple[str, ...] | None
    """Names in the order of the scores; None where nothing says them."""
    weights: str
    """SHA-256 (hex) of the net, whatever file it was in."""
    source: str
    """What the weights came from."""
    Q: tuple[int, ...]
    """Shorter sides in px of the net's own multi-scale test (Table 4)."""
    flip: bool
    """Whether its own test averages over mirror images, as in the paper; digits, say, have none."""

    def normalise(self, images_NCHW: Tensor) -> Tensor:
        """The net's input: float32 of shape (N, 3, H, W), from RGB grey levels 0-255, uint8 or float, of that shape."""
        device = next(self.net.parameters()).device
        mean, std = (torch.tensor(part, device=device).view(3, 1, 1) for part in (self.mean, self.std))
        return (images_NCHW.to(device, torch.float32) - mean) / std

    @torch.inference_mode()
    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """Posteriors (N, classes) of images of any one size, RGB grey levels 0-255: one dense pass (Section 3.2).

        Nothing is rescaled or mirrored: see :meth:`predict` for the paper's test. Raises UserError for images smaller
        than the crop.
        """
        return class_scores(self.net, self.normalise(images_NCHW)).softmax(dim=1)

    @torch.inference_mode()
    def predict(
        self,
        images: Iterable[ArrayLike | Image.Image],
        Q: int | Sequence[int] | None = None,
        *,
        flip: bool | None = None,
    ) -> NDArray[np.float32]:
        """Posteriors (N, classes) under the paper's dense test (Section 3.2), of images of any sizes.

        Each is rescaled to shorter side Q, px, by the filter that `vggrepro evaluate` uses, and the posteriors are
        averaged over Q and mirror images. Defaults are the net's own, as it was tested.

        Args:
            images: a list of RGB (H, W, 3) or grey (H, W) arrays, grey levels 0-255, whole numbers or float, or of PIL
                images; or an array (N, H, W, 3).
            Q: shorter sides, px.
            flip: whether to average over the image and its mirror image.

        Raises:
            UserError: Q is below the net's crop; an image has another shape, or grey levels out of range.
        """
        testing = Evaluation(flip=self.flip if flip is None else flip)
        sides = self.Q if Q is None else (Q,) if isinstance(Q, int) else tuple(Q)
        require_several(images)
        if not sides or min(sides) < self.net.architecture.crop:
            crop = self.net.architecture.crop
            raise UserError(f"Q={list(sides)} is smaller than the net's crop={crop}; choose Q from {crop} on")
        set_arithmetic(next(self.net.parameters()).device, "fp32")
        found = []
        for number, image in enumerate(images):
            pixels = grey_levels(image, f"image {number}")
            at_Q = [dense(self.net, self.normalise(rescale(pixels, side)), testing) for side in sides]
            found.append(torch.stack(at_Q).mean(dim=0))
        return torch.cat(found).cpu().numpy() if found else np.empty((0, self.net.architecture.classes), np.float32)

    @torch.inference_mode()
    def class_map(self, image: ArrayLike | Image.Image, Q: int) -> NDArray[np.float32]:
        """Class scores (classes, h, w), logits, at each place of an image at shorter side Q, px (Section 3.2).

        The mean over the places, then the softmax, is the dense test without the mirror image. Raises UserError.
        """
        return score_map(self.net, self.normalise(rescale(grey_levels(image, "the image"), Q)))[0].cpu().numpy()


def load(
    source: str | Path,
    *,
    net: str | None = None,
    input: Preprocessing | None = None,
    device: str | torch.device = "cpu",
) -> Pretrained:
    """A trained net from a run directory, one of its checkpoints, what `vggrepro publish` made, or a weight file.

    The latter are torchvision's and timm's (`.pth`, `.safetensors`), the authors' (`.caffemodel`), MatConvNet's
    (`.mat`), and what `vggrepro weights export` writes; a published net is a folder, or `hf:owner/name` on the Hub,
    where `@revision` may follow. `net` is the column of Table 1 that it must be of; `input` says what its
    input was where the file does not: "paper" for grey levels minus the mean, else "torchvision".

    Raises:
        UserError: the file is missing, torn, or of no net of Table 1; a run is not finished; the Hub has no such net.
    """
    file, _ = locate(weight_file(source))
    if checkpoint.is_checkpoint(file):
        stored, origin = checkpoint.load(file), str(source)
        if stored.stage.localisation:
            raise UserError(f"{source} predicts boxes, not classes; name the net it was trained from, its run.parent")
        if net not in (None, stored.stage.model.net):
            raise UserError(f"{source} is of net {stored.stage.model.net}, not {net}; name another run or net")
    else:
        imported = read(file, net=net, preprocessing=input)
        stored, origin = checkpoint_of(imported, Path("runs/imported/net")), f"{imported.source} ({source})"
    built, names = net_of(stored, torch.device(device)), stored.provenance["classes"]
    if names is None and built.architecture.classes == value("classes"):  # the only such nets that are published
        names = ilsvrc_classes()
    mean, std = (tuple(stored.preprocessing[key]) for key in ("mean", "std"))
    return Pretrained(
        net=built,
        mean=mean,
        std=std,
        classes=None if names is None else tuple(names),
        weights=checkpoint.weights_hash(stored.weights),
        source=origin,
        Q=stored.stage.multi_Q,
        flip=stored.stage.evaluation.flip,
    )


def require_several(images: object) -> None:
    """Raises UserError for a single image: the rows of (H, W, 3) would pass for H grey images."""
    if isinstance(images, Image.Image) or getattr(images, "ndim", 4) not in (1, 4):
        raise UserError("images must be a list, or an array (N, height, width, 3); put one into a list: [image]")


def grey_levels(image: ArrayLike | Image.Image, name: str) -> NDArray[np.uint8] | NDArray[np.float32]:
    """An image as (H, W, 3) grey levels, uint8 or float32. Raises UserError, naming the image."""
    if isinstance(image, Image.Image):
        return np.asarray(rgb(image))
    pixels = np.asarray(image)
    if pixels.dtype == object:  # of JSON
        pixels = np.array(pixels.tolist())
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise UserError(f"{name} has the shape {pixels.shape}; give (height, width, 3), RGB, or (height, width), grey")
    if pixels.dtype == np.uint8:
        return pixels
    low, high = float(pixels.min()), float(pixels.max())
    if not ((low >= 0 and 1 < high <= 255) or low == high == 0):
        scaled = "; multiply it by 255" if 0 <= low and high <= 1 else ""
        raise UserError(f"{name} has grey levels from {low:g} to {high:g}, which must be in [0, 255]{scaled}")
    return pixels.astype(np.uint8) if np.issubdtype(pixels.dtype, np.integer) else pixels.astype(np.float32)


def rescale(pixels: NDArray[np.uint8] | NDArray[np.float32], Q: int) -> Tensor:
    """An image (H, W, 3) at shorter side Q, px, as (1, 3, h, w): PIL's filter, as in `data.decode.resample`."""
    ((height, width),) = rescaled_size(np.array([pixels.shape[:2]]), Q)
    size = (int(width), int(height))
    if pixels.dtype == np.uint8:
        shown = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    else:
        channels = (Image.fromarray(channel) for channel in np.moveaxis(pixels, 2, 0))
        shown = np.stack([np.asarray(part.resize(size, Image.Resampling.BILINEAR)) for part in channels], axis=2)
    return torch.from_numpy(shown.copy()).permute(2, 0, 1)[None]
