"""What the model reads and writes: harmony's text format and the prompts of each way to play."""
