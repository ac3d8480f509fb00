"""Train and test video backbones with Video Motion Prompts (Chen et al., ACML 2024)."""

__version__ = "0.1.0"
