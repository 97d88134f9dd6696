"""The interop endpoint, its matrix, and what the matrix is played on."""
