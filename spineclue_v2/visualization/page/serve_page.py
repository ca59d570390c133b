"""The page of the service at which scans are uploaded: one file, nothing from elsewhere."""
from __future__ import annotations

from .case_page import FOLDER, environment, script_hash


def serve_page(modality: str, upload_bytes: int, kept_seconds: float) -> tuple[str, str]:
    """The page, and the content security policy that it has to be sent with.

    Args:
        modality: "CT" or "MR": of scans that the model takes.
        upload_bytes: largest upload.
        kept_seconds: how long results are kept.
    """
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("common.css", "serve.js"))
    text = environment().get_template("serve.html").render(modality=modality, megabytes=upload_bytes >> 20, style=style, script=script,
                                                           minutes=round(kept_seconds / 60))
    policy = (f"default-src 'none'; style-src 'unsafe-inline'; script-src '{script_hash(script)}'; connect-src 'self'; "
              "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
    return text, policy
