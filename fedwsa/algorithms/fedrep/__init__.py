"""FedRep: heads first, then the body that all share."""
