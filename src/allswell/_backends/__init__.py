"""Sans-IO protocol engines behind one interface: h11, h2, aioquic."""
