"""The demo model: a small VAR and its VQVAE, trained from scratch on emoji (see docs/demo-model.md)."""
