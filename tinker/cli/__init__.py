"""The tinker command."""


def main():
    raise SystemExit("building")
