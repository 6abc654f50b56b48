"""The demo model: a small VAR and its VQVAE, trained from nothing on emoji (see docs/demo-model.md)."""
