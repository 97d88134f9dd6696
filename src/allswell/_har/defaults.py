"""What a recording keeps and shows if its caller does not say."""

from __future__ import annotations

from allswell._fields import SIGNATURES

#: The names whose values are left out by default: of header fields, and of parameters in queries and forms.
SECRETS = frozenset(
    {
        "authorization",
        "cookie",
        "proxy-authorization",
        "set-cookie",
        "api-key",
        "x-api-key",
        "private-token",
        "x-access-token",
        "x-auth-token",
        "x-vault-token",
        "x-xsrf-token",
        "x-csrf-token",
        "x-goog-api-key",
        "access_token",
        "api_key",
        "apikey",
        "assertion",
        "client_assertion",
        "client_secret",
        "code",
        "code_verifier",
        "id_token",
        "password",
        "refresh_token",
        "secret",
        "token",
        *SIGNATURES,
    }
)

#: How many bytes of each body are kept by default.
MAX_BODY = 1024 * 1024
