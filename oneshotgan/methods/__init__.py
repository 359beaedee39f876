"""The methods that `oneshotgan.training.fit` can train."""
