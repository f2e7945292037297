from .jobs import launch as launch
