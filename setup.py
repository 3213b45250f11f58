"""Dependencies, extras, and the package ``xyscannet``, which is models/; the scripts run from the root uninstalled."""

from setuptools import find_packages, setup

# For LPIPS, ST-LPIPS, FID, KID and the figures; PSNR, both SSIMs, the aligned scores and NIQE's live model need none of
# these. Versions are exact where another one would change scores. clean-fid breaks with SciPy 1.18.
METRICS = ["lpips==0.1.4", "stlpips-pytorch==0.0.2", "clean-fid==0.1.35", "scipy>=1.11,<1.18", "matplotlib>=3.7"]

EXPORT = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"]
HUB = ["huggingface_hub>=0.25", "safetensors>=0.4.3"]
VIDEO = ["av>=14.1"]
PEERS = ["spandrel>=0.4", "spandrel-extra-arches>=0.2"]
TEST = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.5",
    "scikit-image>=0.22",
    *METRICS,
    *VIDEO,
    *PEERS,
    *EXPORT,
    *HUB,
]

setup(
    name="xyscannet",
    version="0.1.0",
    description="XYScanNet, a state space model for single-image deblurring: training, prediction and evaluation",
    python_requires=">=3.10",
    packages=["xyscannet", *(f"xyscannet.{name}" for name in find_packages("models"))],
    package_dir={"xyscannet": "models"},
    package_data={
        "xyscannet": ["py.typed", "pretrained/*.pth", "pretrained/NOTICE.txt"],
        "xyscannet.ops": ["*.json"],
        "xyscannet.ops.native": ["*.c", "*.h"],
    },
    py_modules=[],
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "einops>=0.7",
        "numpy>=1.26",
        # OpenCV 5 warps differently, which moves the aligned RealBlur scores by 4e-3 dB.
        "opencv-python-headless>=4.10,<5",
        "pillow>=11.3",  # the first to read AVIF
        "pillow-heif>=1.0",
        "pyyaml>=6",
        "tensorboard>=2.14",
        "tqdm>=4.66",
    ],
    extras_require={
        "cuda": ["mamba-ssm>=2.2", "causal-conv1d>=1.4"],
        "export": EXPORT,
        "hub": HUB,
        "metrics": METRICS,
        "video": VIDEO,
        "peers": PEERS,
        "test": TEST,
        "dev": ["ruff>=0.17", "codespell>=2.4", "mypy>=2.0", "pre-commit>=4.0", *TEST],
    },
)
