"""What ``sekisho doctor`` looks at. Each check tells what it saw, and what to do; it changes nothing."""
