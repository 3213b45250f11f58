"""Restore the RealBlur-J test set with a job's final_ stage-2 weights and score it.

    python predict_RealBlur_J_test_results.py --job_name xyscannetp_realj

Reads datasets/RealBlur_J (980 pairs of various sizes), writes results/JOB_NAME/images_realj, images_realj.csv and
images_realj.json. The paper's Table 4: ST-LPIPS 0.041, NIQE 3.71; it gives no PSNR for RealBlur-J.
"""

from engine.predict.test_set import PredictSpec, predict

NOTE = (
    "These scores compare the images as they are. RealBlur's own protocol aligns them first, and its figures are "
    "not interchangeable with these."
)

if __name__ == "__main__":
    predict(
        PredictSpec(
            name="RealBlur-J",
            folder="datasets/RealBlur_J",
            images="images_realj",
            weights="final",
            paper="realblur_j",
            variant="J",
            count=980,
            note=NOTE,
        )
    )
