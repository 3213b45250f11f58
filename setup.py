"""Dependencies and extras. The scripts run from the root, so no module is put into site-packages."""

from setuptools import setup

# What LPIPS, ST-LPIPS, FID, KID and the radar figure need; PSNR, both SSIMs, the aligned scores and NIQE by the live
# model do without. Versions are exact where another one would change scores. clean-fid breaks with SciPy 1.18.
METRICS = ["lpips==0.1.4", "stlpips-pytorch==0.0.2", "clean-fid==0.1.35", "scipy>=1.11,<1.18", "matplotlib>=3.7"]

setup(
    name="xyscannet",
    version="0.1.0",
    description="XYScanNet, a state space model for single-image deblurring: training, prediction and scores",
    python_requires=">=3.10",
    packages=[],
    py_modules=[],
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "einops>=0.7",
        "numpy>=1.26",
        # OpenCV 5 warps differently, which moves the aligned RealBlur scores by 4e-3 dB.
        "opencv-python-headless>=4.10,<5",
        "pillow>=10.1",
        "pyyaml>=6",
        "tensorboard>=2.14",
        "tqdm>=4.66",
    ],
    extras_require={
        "cuda": ["mamba-ssm>=2.2", "causal-conv1d>=1.4"],
        "metrics": METRICS,
        "test": ["pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.5", "scikit-image>=0.22", "ruff>=0.6", *METRICS],
    },
)
