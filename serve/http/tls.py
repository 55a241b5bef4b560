"""TLS from a certificate and a key in files."""

from __future__ import annotations

import ssl
from pathlib import Path

from edgesmith.errors import UsageError

__all__ = ["make_tls_context"]


def make_tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Settings of a server that speaks TLS 1.2 or newer.

    Args:
        certificate: PEM file with the certificate, followed by those in between up to the root.
        key: PEM file with its private key, not encrypted.

    Raises:
        UsageError: A file is missing, is no PEM, is encrypted, or the two do not belong together.
    """
    for what, path in (("certificate", certificate), ("key", key)):
        if not path.is_file():
            raise UsageError(f"the TLS {what} {path} is not there", mend="Give the path of a PEM file.")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])

    def refuse_password() -> str:
        raise UsageError(
            f"the TLS key {key} is encrypted",
            mend=f"Write it without passphrase: openssl pkey -in {key} -out plain.pem",
        )

    try:
        context.load_cert_chain(certificate, key, password=refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(
                f"the TLS key {key} does not belong to the certificate {certificate}",
                mend="Give the key that the certificate was made with, and the server's certificate first in its file.",
            ) from error
        raise UsageError(
            f"{certificate} and {key} are no PEM certificate and key: {error.reason or error}",
            mend="Convert them with openssl x509 -in FILE -outform PEM and openssl pkey.",
        ) from error
    except OSError as error:
        raise UsageError(f"the TLS files cannot be read: {error}") from error
    return context
