"""An async HTTP client that ends well."""
