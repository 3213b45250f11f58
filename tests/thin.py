"""A network for what takes its time per layer: PyTorch's compiler and exporters, and steps of tiny trainings."""

from models import XYScanNet


class Thin(XYScanNet):
    """With blocks at the lowest level alone, where the smallest image is one pixel; the two others' are the same."""

    def __init__(self, dim: int, num_blocks: tuple[int, int, int], **options):
        super().__init__(dim, num_blocks, **options)
        for level in (self.encoder_level1, self.encoder_level2, self.decoder_level1, self.decoder_level2):
            del level[:]
