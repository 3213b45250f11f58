"""Restore the RealBlur-J test set with a job's final_ stage-2 weights and score it.

    python predict_RealBlur_J_test_results.py --job_name xyscannetp_realj

Reads datasets/RealBlur_J (980 pairs of various sizes), writes results/JOB_NAME/images_realj and its
scores, images_realj_scores. The paper's Table 4: ST-LPIPS 0.041, NIQE 3.71; it gives no PSNR for RealBlur-J.
"""

from engine.predict.test_set import predict

if __name__ == "__main__":
    predict("realblur_j")
