"""The versions of HTTP as engines without I/O, behind one interface (`interface.py`)."""
