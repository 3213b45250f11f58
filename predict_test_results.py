"""Restore any test set of datasets/catalogue.py with a job's stage-2 weights and score it.

    python predict_test_results.py --dataset hide --job_name xyscannetp_gopro

The scripts named after a data set do the same for theirs.
"""

from engine.predict.test_set import predict

if __name__ == "__main__":
    predict()
