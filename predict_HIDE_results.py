"""Restore the HIDE test set with a GoPro job's best_ stage-2 weights and score it.

    python predict_HIDE_results.py --job_name xyscannetp_gopro

Reads datasets/HIDE (2025 pairs), writes results/JOB_NAME/images_hide and its scores, images_hide_scores.
The paper's Table 2: PSNR 31.74 dB, SSIM 0.947 (here ssim_matlab_rgb), by a network trained on GoPro alone.
"""

from engine.predict.test_set import predict

if __name__ == "__main__":
    predict("hide")
