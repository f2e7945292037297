import pytest

JOB = """
from tinker.train import default_config


def get_config(arg=None):
    config = default_config()
    config.data = dict(source="digits")
    config.model = dict(fn="tinker.models:MLP", inputs=("image",))
    config.optimizer = dict(fn="optax:adam", learning_rate=1e-3)
    config.steps = int(arg or 20)
    config.batch_size = 64
    return config
"""


@pytest.fixture
def job(tmp_path):
    """A small training job in a file."""
    path = tmp_path / "job.py"
    path.write_text(JOB)
    return path
