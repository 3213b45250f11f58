"""Restore the photographs of RWBI with a GoPro job's best_ stage-2 weights.

    python predict_RWBI_results.py --job_name xyscannetp_gopro

Reads datasets/RWBI, writes results/JOB_NAME/images_rwbi.
There are no sharp images, so no PSNR. The paper's Table 3: NIQE 3.383 restored, 3.546 blurred.
"""

from engine.predict.test_set import predict

if __name__ == "__main__":
    predict("rwbi")
