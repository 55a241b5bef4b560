from __future__ import annotations

from tests.serve.protocols.oip.conftest import serving as serving
