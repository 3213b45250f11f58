"""XYScanNet on the Hugging Face hub: safetensors, a config.json and a model card (extra ``hub``).

HubXYScanNet.of(load("best_XYScanNet_stage2.pth")).push_to_hub("user/name")
network = HubXYScanNet.from_pretrained("user/name")
"""

from __future__ import annotations

import os
from pathlib import Path

from .weights import WeightsError, build, check_finite
from .xyscannet import XYScanNet

try:
    from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file
except ImportError as error:
    raise ImportError(f"the hub needs huggingface_hub and safetensors ({error}): pip install xyscannet[hub]") from error

WEIGHTS = "model.safetensors"
CARD = """---
{{ card_data }}
---

# {{ title }}

[XYScanNet](https://arxiv.org/abs/2412.10338) (Liu et al., NTIRE workshop at CVPR 2025), a state space U-Net that
removes blur from photographs, with {{ parameters }} parameters.

```python
import xyscannet

network = xyscannet.load("{{ repo_id }}")
sharp = xyscannet.deblur(image, network)  # (H, W, 3) uint8 or uint16, or a PIL image
```

The weights are in `model.safetensors`, the arguments of `xyscannet.XYScanNet` in `config.json`:

| argument | value |
|---|---|
{% for name, value in network.items() -%}
| `{{ name }}` | {{ value }} |
{% endfor %}
The network takes RGB images in [-0.5, 0.5] whose sides are padded by reflection to multiples of 8, which
`xyscannet.deblur` does. Its training data and scores are for its publisher to add here.
"""


class HubXYScanNet(
    XYScanNet,
    PyTorchModelHubMixin,
    library_name="xyscannet",
    pipeline_tag="image-to-image",
    tags=["deblurring", "image-restoration", "state-space-model"],
    paper_url="https://arxiv.org/abs/2412.10338",
    model_card_template=CARD,
):
    """XYScanNet with `save_pretrained`, `from_pretrained` and `push_to_hub`, which are huggingface_hub's."""

    def __init__(self, **options):
        super().__init__(**options)
        self._hub_mixin_config = self.description  # what becomes config.json

    @classmethod
    def of(cls, network: XYScanNet) -> HubXYScanNet:
        """A copy of ``network``, weights included, that can be saved and published."""
        copy = cls(**network.description).to(next(network.parameters()))
        copy.load_state_dict(network.state_dict())
        return copy.train(network.training)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights to the folder: the whole file, or the one that was there."""
        temporary = save_directory / f".{WEIGHTS}.{os.getpid()}.tmp"
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        try:
            save_file(state, temporary, metadata={"format": "pt"})
            os.replace(temporary, save_directory / WEIGHTS)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def _from_pretrained(cls, *, model_id, revision, cache_dir, force_download, local_files_only, token, **options):
        """Strict, as `weights.load_network`: nothing is missing, unknown or not finite."""
        path: str | Path = Path(model_id) / WEIGHTS
        if not Path(model_id).is_dir():
            where = {"revision": revision, "cache_dir": cache_dir, "token": token}
            path = hf_hub_download(
                model_id, WEIGHTS, force_download=force_download, local_files_only=local_files_only, **where
            )
        if "dim" not in options:
            raise WeightsError(model_id, "its config.json, the description of the network, is missing or empty")
        try:
            state = load_file(path)
        except SafetensorError as error:
            raise WeightsError(path, f"not a safetensors file, or damaged ({error})") from error
        check_finite(state, path)
        return build(cls, options, state, path)

    def generate_model_card(self, *args, repo_id: str = "user/name", **kwargs) -> ModelCard:
        """The card of this network; ``repo_id`` is what its example loads."""
        number = sum(parameter.numel() for parameter in self.parameters())
        facts = {"title": "XYScanNet", "parameters": f"{number:,}", "network": self.description, "repo_id": repo_id}
        return super().generate_model_card(*args, **facts, **kwargs)

    def push_to_hub(self, repo_id: str, *, model_card_kwargs: dict | None = None, **options) -> str:
        """As huggingface_hub's; the card's example names the repository."""
        return super().push_to_hub(
            repo_id, model_card_kwargs={"repo_id": repo_id, **(model_card_kwargs or {})}, **options
        )


def load_pretrained(source: str | Path, **options) -> HubXYScanNet:
    """The network of a folder or of a repository, "user/name", with every failure as a WeightsError of one line."""
    try:
        return HubXYScanNet.from_pretrained(source, **options)
    except WeightsError:
        raise
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise WeightsError(source, f"cannot be loaded from the hub: {str(error).strip().splitlines()[0]}") from error
