"""Restore the RealBlur-R test set with a job's final_ stage-2 weights and score it.

    python predict_RealBlur_R_test_results.py --job_name xyscannetp_realr

Reads datasets/RealBlur_R (980 pairs of various sizes), writes results/JOB_NAME/images_realr, images_realr.csv and
images_realr.json. The paper's Table 4: ST-LPIPS 0.012, NIQE 5.21; it gives no PSNR for RealBlur-R.
"""

from engine.predict.test_set import PredictSpec, predict

NOTE = (
    "These scores compare the images as they are. RealBlur's own protocol aligns them first, and its figures are "
    "not interchangeable with these."
)

if __name__ == "__main__":
    predict(
        PredictSpec(
            name="RealBlur-R",
            folder="datasets/RealBlur_R",
            images="images_realr",
            weights="final",
            paper="realblur_r",
            variant="R",
            count=980,
            note=NOTE,
        )
    )
