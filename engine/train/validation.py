"""Scores on full validation images, shared out over the ranks, each image scored once."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F

from datasets.paired import WholePairs
from metrics.psnr import psnr_torch
from metrics.ssim import ssim_matlab_rgb_torch
from models.images import reflect_pad

from .. import distributed
from ..prefetch import prefetch

READERS = 2  # threads: processes forked during training can inherit a lock that nobody releases
PICTURES = 3  # shown in TensorBoard
PICTURE_WIDTH = 1536  # pixels at most, three images side by side


@torch.inference_mode()
def validate(
    images: WholePairs,
    network: torch.nn.Module,
    device: torch.device,
    autocast: Callable,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, float], list[torch.Tensor]] | None:
    """PSNR in dB and ssim_matlab_rgb of restored images rounded to 8 bits, averaged over the images of all ranks.

    Images are padded as in prediction, so that both give the same scores.

    Args:
        stop: asked after each image whether to stop.

    Returns:
        The mean scores, and this rank's first few comparisons (3, H, W) in [0, 1]; None if any rank stopped.
    """
    network.eval()
    mine = range(distributed.rank(), len(images), distributed.world_size())
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # PSNR, SSIM, images
    pictures: list[torch.Tensor] = []
    dtype = next(network.parameters()).dtype
    with distributed.fail_together(), ThreadPoolExecutor(READERS) as readers:
        for pair in prefetch(readers, images.__getitem__, mine, READERS):
            blurred, sharp = (image.to(device, dtype)[None] / 255 for image in pair)
            height, width = blurred.shape[-2:]
            with autocast():
                restored = network(reflect_pad(blurred - 0.5))[..., :height, :width].to(dtype) + 0.5
            restored = (restored.clamp(0, 1) * 255).round() / 255
            scores = [psnr_torch(restored, sharp).mean(), ssim_matlab_rgb_torch(restored, sharp).mean()]
            totals += torch.stack([*scores, torch.ones_like(scores[0])]).double()
            if len(pictures) < PICTURES:
                pictures.append(_side_by_side((blurred, restored, sharp)))
            if stop():
                break
    network.train()
    if distributed.any_rank(stop()):
        return None
    psnr, ssim, count = distributed.sum_over_ranks(totals).tolist()
    return {"psnr": psnr / count, "ssim_matlab_rgb": ssim / count}, pictures


def _side_by_side(images: Sequence[torch.Tensor]) -> torch.Tensor:
    row = torch.cat(list(images), dim=3).float()
    if row.shape[3] > PICTURE_WIDTH:
        row = F.interpolate(row, scale_factor=PICTURE_WIDTH / row.shape[3], mode="area")
    return row[0].cpu()
