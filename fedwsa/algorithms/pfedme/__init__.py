"""pFedMe: models of the clients' own from Moreau envelopes."""
