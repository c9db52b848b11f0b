"""Running a model: tokenizer, key/value cache, sampler, engine."""
