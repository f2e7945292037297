"""Jobs and studies as ml-collections configs, imported as tinker.configs."""
