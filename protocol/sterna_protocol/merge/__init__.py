"""What the result is: adapter scheme, delta codec, integer merge."""
