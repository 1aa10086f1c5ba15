"""What is final: messages of a round, consensus, certificates, the chain, anti-entropy."""
