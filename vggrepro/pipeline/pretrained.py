"""Trained nets from any supported file, applied to images in memory."""

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
    """A trained net with its preprocessing, class names and test protocol."""

    net: VGG
    """Net in evaluation mode."""
    mean: tuple[float, float, float]
    """Mean of RGB, in grey levels 0 to 255, subtracted from the input."""
    std: tuple[float, float, float]
    """Divisor per channel after the mean is subtracted; ones in the paper."""
    classes: tuple[str, ...] | None
    """Names in the order of the scores; None if the file has none."""
    weights: str
    """SHA-256 (hex) of the weights, independent of the file format."""
    source: str
    """File or run that the weights were read from."""
    Q: tuple[int, ...]
    """Shorter sides in px of the net's multi-scale test (Table 4)."""
    flip: bool
    """Whether the net's test averages over mirror images, as in the paper."""

    def normalise(self, images_NCHW: Tensor) -> Tensor:
        """Returns the net's input, float32 (N, 3, H, W), from RGB grey levels 0 to 255, uint8 or float (N, 3, H, W)."""
        device = next(self.net.parameters()).device
        mean, std = (torch.tensor(part, device=device).view(3, 1, 1) for part in (self.mean, self.std))
        return (images_NCHW.to(device, torch.float32) - mean) / std

    @torch.inference_mode()
    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """Computes posteriors (N, classes) by a dense pass, without rescaling or mirroring (Section 3.2).

        `predict` is the paper's test.

        Args:
            images_NCHW: RGB grey levels 0 to 255, shape (N, 3, H, W).

        Raises:
            UserError: the images are smaller than the crop.
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
        """Computes posteriors (N, classes) by the paper's dense test (Section 3.2), for images of any sizes.

        Images are rescaled with the filter of `vggrepro evaluate`; posteriors are averaged over Q and mirror images.

        Args:
            images: list of PIL images, or of RGB (H, W, 3) or grey (H, W) arrays in grey levels 0 to 255, integer or
                float; or an array (N, H, W, 3).
            Q: shorter sides in px; default: as the net was tested.
            flip: whether to average over the image and its mirror image; default: as the net was tested.

        Raises:
            UserError: Q is smaller than the net's crop, or an image has another shape or grey levels out of range.
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
        """Computes the map of class scores (logits), shape (classes, h, w), of an image (Section 3.2).

        The softmax of the mean over positions is the dense test without the mirror image.

        Args:
            image: a PIL image, or RGB (H, W, 3) or grey (H, W) levels 0 to 255.
            Q: shorter side of the rescaled image in px.

        Raises:
            UserError: the image has another shape or grey levels out of range, or is smaller than the crop.
        """
        return score_map(self.net, self.normalise(rescale(grey_levels(image, "the image"), Q)))[0].cpu().numpy()


def load(
    source: str | Path,
    *,
    net: str | None = None,
    input: Preprocessing | None = None,
    device: str | torch.device = "cpu",
) -> Pretrained:
    """Loads a trained net.

    Args:
        source: run directory, checkpoint, published folder, `hf:owner/name[@revision]` on the Hub, or weight file:
            torchvision's and timm's (`.pth`, `.safetensors`), the authors' (`.caffemodel`), MatConvNet's (`.mat`), or
            the output of `vggrepro weights export`.
        net: column of Table 1 that the weights must belong to; default: any.
        input: preprocessing if the file does not state it: "paper" for grey levels minus the mean, or "torchvision".

    Raises:
        UserError: the file is missing, damaged or not a net of Table 1, the run is unfinished, or the Hub has no such
            net.
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
    if names is None and built.architecture.classes == value("classes"):  # published nets are ILSVRC's
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
    """Raises UserError for a single image, because the rows of (H, W, 3) would pass for H grey images."""
    if isinstance(images, Image.Image) or getattr(images, "ndim", 4) not in (1, 4):
        raise UserError("images must be a list, or an array (N, height, width, 3); put one into a list: [image]")


def grey_levels(image: ArrayLike | Image.Image, name: str) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Returns an image as grey levels (H, W, 3), uint8 or float32. Raises UserError, naming the image."""
    if isinstance(image, Image.Image):
        return np.asarray(rgb(image))
    pixels = np.asarray(image)
    if pixels.dtype == object:  # parsed from JSON
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
    """Rescales an image (H, W, 3) to shorter side Q in px, shape (1, 3, h, w), as `data.decode.resample` does."""
    ((height, width),) = rescaled_size(np.array([pixels.shape[:2]]), Q)
    size = (int(width), int(height))
    if pixels.dtype == np.uint8:
        rescaled = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    else:
        channels = (Image.fromarray(channel) for channel in np.moveaxis(pixels, 2, 0))
        rescaled = np.stack([np.asarray(part.resize(size, Image.Resampling.BILINEAR)) for part in channels], axis=2)
    return torch.from_numpy(rescaled.copy()).permute(2, 0, 1)[None]
