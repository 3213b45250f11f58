"""Score a folder of restored images with every metric of the paper, beside the paper's figures.

    python evaluate.py --pred results/J/images --gt datasets/GoPro/test --dataset gopro
    python evaluate.py --pred results/J/images_rwbi --dataset rwbi
    python evaluate.py --pred results/J/images --gt datasets/GoPro --dataset gopro --metrics psnr niqe --format markdown

Images are paired by name, whatever the layout of either side. Each image's scores go to PRED_scores/scores.csv, the
means, with the exact name, model and versions behind each, to PRED_scores/scores.json.
"""

from engine.evaluate.command import main

if __name__ == "__main__":
    main()
