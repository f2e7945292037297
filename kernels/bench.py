"""All kernels against their peers: ``python -m tinker.kernels.bench``."""

import importlib

from tinker.kernels.benchmarking import main

OPS = ("attention", "large_vocabulary", "contrastive", "sparse_ot", "sinkhorn")

if __name__ == "__main__":
    main([importlib.import_module(f"tinker.kernels.{op}.bench").cases for op in OPS])
