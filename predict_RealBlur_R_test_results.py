"""Restore the RealBlur-R test set with a job's final_ stage-2 weights and score it.

    python predict_RealBlur_R_test_results.py --job_name xyscannetp_realr

Reads datasets/RealBlur_R (980 pairs of various sizes), writes results/JOB_NAME/images_realr and its
scores, images_realr_scores. The paper's Table 4: ST-LPIPS 0.012, NIQE 5.21; it gives no PSNR for RealBlur-R.
"""

from engine.predict.test_set import predict

if __name__ == "__main__":
    predict("realblur_r")
