"""The networks of One-Shot GAN: sizes planned first, then built."""
