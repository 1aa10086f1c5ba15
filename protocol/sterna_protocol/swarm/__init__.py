"""Who may speak: charter, ticket, membership, committee."""
