"""How parts are named by dotted paths and checked, where ``conf/`` lies, who is to blame."""
