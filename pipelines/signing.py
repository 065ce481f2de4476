"""Signs and verifies bundles with OpenSSF model-signing and an elliptic-curve key of this user."""

import os
import tempfile
from pathlib import Path
from typing import Any

from pipelines.stage import StageError

SIGNATURE = "signature.json"  # a Sigstore bundle over every other file of the folder


def key_path() -> Path:
    """Return where the private key lies: QUANTMILL_SIGNING_KEY, or a file in the user's configuration folder."""
    if named := os.environ.get("QUANTMILL_SIGNING_KEY"):
        return Path(named)
    return config_folder() / "signing-key.pem"


def config_folder() -> Path:
    """Return the folder of this user's Quantmill settings: `quantmill` in XDG_CONFIG_HOME or ~/.config."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "quantmill"


def trusted_keys() -> list[Path]:
    """Return the public keys whose signatures count.

    QUANTMILL_TRUSTED_KEYS names files or folders of *.pem (like PATH); without it, they are this user's own key and
    those in `trusted` beside it.
    """
    if named := os.environ.get("QUANTMILL_TRUSTED_KEYS"):
        places = [Path(p) for p in named.split(os.pathsep) if p]
    else:
        places = [public_path(key_path()), config_folder() / "trusted"]
    return [key for p in places for key in (sorted(p.glob("*.pem")) if p.is_dir() else [p]) if key.is_file()]


def public_path(key: Path) -> Path:
    """Return where the public key of a private key lies."""
    return key.with_name(f"{key.stem}.pub.pem")


def make_key(key: Path) -> None:
    """Write a private key (P-256, readable by the user alone) and its public key, unless they are there.

    Processes that do so at once all end with the same key.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if not key.exists():
        key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _write_new(key, pem)
    if not public_path(key).exists():
        try:
            private = serialization.load_pem_private_key(key.read_bytes(), None)
        except (ValueError, TypeError) as error:
            raise StageError(f"{key}: not an unencrypted private key in PEM: {error}") from None
        pem = private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        _write_new(public_path(key), pem)


def sign(bundle: Path) -> None:
    """Write `signature.json` over every file of the bundle, with the user's key, which is made on first use."""
    from model_signing import signing

    bundle = bundle.resolve()  # the library takes relative paths for others than the folder's
    key = key_path()
    make_key(key)
    config = signing.Config().use_elliptic_key_signer(private_key=key)
    config.set_hashing_config(_hashing(bundle)).sign(bundle, bundle / SIGNATURE)


def verify(bundle: Path, keys: list[Path]) -> str:
    """Return the name of the key that signed exactly the files of this folder.

    Raises StageError with the reason when none of `keys` did, when a file was added, changed or removed, or when
    the folder holds a link.
    """
    from model_signing import verifying

    bundle = bundle.resolve()
    signature = bundle / SIGNATURE
    if not signature.is_file() or signature.is_symlink():
        raise StageError("the bundle has no signature")
    if not keys:
        raise StageError("no public key is trusted here; see QUANTMILL_TRUSTED_KEYS in docs/promotion.md")
    reason = ""
    for key in keys:
        try:
            config = verifying.Config().use_elliptic_key_verifier(public_key=key)
            config.set_hashing_config(_hashing(bundle)).verify(bundle, signature)
        except Exception as error:  # any failure of the library means that this key did not sign these files
            text = " ".join(str(error).split()) or type(error).__name__
            reason = text if "Key mismatch" not in text or not reason else reason
        else:
            return key.name
    if "Key mismatch" in reason:
        reason = "it is signed with a key that is not trusted here"
    raise StageError(f"the signature does not hold: {reason}")


def _hashing(bundle: Path) -> Any:
    """Hash every file but the signature: the library would skip git's files by itself."""
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=[bundle / SIGNATURE], ignore_git_paths=False)


def _write_new(path: Path, data: bytes) -> None:
    """Write a file with mode 600, whole, unless another process was first."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.link(name, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(name)
