"""Small tensors gain nothing from threads, and two processes' threads stand in each other's way."""
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")       # read when torch is imported, here and in the processes of tests
