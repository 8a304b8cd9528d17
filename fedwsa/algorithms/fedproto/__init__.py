"""FedProto: clients share what their networks say of each class, and no weights."""
