"""Restore the GoPro test set with a job's best_ stage-2 weights and score it.

    python predict_GoPro_test_results.py --job_name xyscannetp_gopro
    torchrun --nproc_per_node=8 predict_GoPro_test_results.py --job_name xyscannetp_gopro

Reads datasets/GoPro (1111 pairs of 1280 x 720), writes results/JOB_NAME/images and its scores, images_scores.
The paper's Table 1: PSNR 33.91 dB, SSIM 0.968 (here ssim_matlab_rgb).
"""

from engine.predict.test_set import predict

if __name__ == "__main__":
    predict("gopro")
