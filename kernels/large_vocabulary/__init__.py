"""Cross-entropy over a large vocabulary without its logits."""
