"""One short file per framework. Each imports the verifier and its framework, and nothing of the issuer."""
