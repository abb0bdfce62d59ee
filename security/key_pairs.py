"""A private key and the certificate that is for it: a renewal replaces both files so that one pair always works."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from security.certificates import CertificateError, public_key_of
from security.errors import UsageError
from security.homes import certificate_in, read_public
from security.key_files import load_tls_key, plain_pem, public_der
from security.private_files import replace_file, sync_folder


def certificate_for(key_path: Path, certificate_path: Path, passphrase: str | None) -> Path:
    """The file with the certificate for this key: `certificate_path`, or where a renewal that was cut off left it.

    Raises:
        UsageError: a file is missing or no key or certificate, or they don't belong together.
    """
    key = public_der(load_tls_key(key_path, passphrase))
    for path in (certificate_path, _waiting(certificate_path)):
        if path == certificate_path or path.exists():
            with certificate_in(path):
                if public_key_of(read_public(path)) == key:
                    return path
    raise CertificateError(
        f"{certificate_path}: is not for the key in {key_path}; install the newest certificate again"
    )


def key_and_certificate(key_path: Path, certificate_path: Path, passphrase: str | None) -> tuple[bytes, bytes]:
    """A private key without its passphrase, and the certificate that is for it, both PEM; never to be written.

    Raises:
        UsageError: as for `certificate_for`.
    """
    certificate = read_public(certificate_for(key_path, certificate_path, passphrase))
    return plain_pem(load_tls_key(key_path, passphrase)), certificate


def switch(new_key: Path, key_path: Path, certificate: bytes, certificate_path: Path) -> None:
    """Put a new key and its certificate in the place of the old ones.

    The certificate is written under another name first, and then renamed after the key: if this is cut off, either the
    old pair is there, or the new key, and `certificate_for` finds its certificate under the other name.

    Raises:
        UsageError: a file can't be replaced.
    """
    waiting = _waiting(certificate_path)
    replace_file(waiting, certificate)
    try:
        new_key.replace(key_path)
        sync_folder(key_path.parent)
        waiting.replace(certificate_path)
        sync_folder(certificate_path.parent)
    except OSError as error:
        raise UsageError(f"{error.filename}: can't be replaced ({error.strerror}); give the right to write") from error


def put_certificate(certificate: bytes, certificate_path: Path) -> None:
    """Write a certificate for the key that is there already."""
    replace_file(certificate_path, certificate)
    with suppress(OSError):
        _waiting(certificate_path).unlink(missing_ok=True)


def _waiting(certificate_path: Path) -> Path:
    return certificate_path.with_suffix(".next.pem")
