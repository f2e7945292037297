"""The engines, by name; each has a module with ``plan(job)`` and ``run(job, plan)``."""

ENGINES = ("local", "slurm", "ray", "tpu-vm", "xpk")

# What is needed to submit, and where to get it.
TOOLS = {
    "ray": "pip install 'tinker-jax[ray]'",
    "sbatch": "Slurm's client; launch from a machine of the cluster",
    "gcloud": "the Google Cloud CLI; https://cloud.google.com/sdk/docs/install",
    "xpk": "Google's launcher for GKE; pip install xpk, in an environment of its own",
}
