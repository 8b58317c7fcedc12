"""For those who write a store or a payload format of their own, and for tests of code that uses this library.

``StoreContract`` (with ``SharedStoreContract``) and ``FormatContract`` are what a store and a format must do, as pytest
classes to subclass; ``FaultyStore`` fails on purpose. The contracts need the extra ``testing``, which is not installed
with the library, so they are imported when they are asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ckpt_lib.testing.faulty_store import OPERATIONS, BitFlip, FaultPlan, FaultyStore, faults_injected

if TYPE_CHECKING:
    from ckpt_lib.testing.format_contract import FormatContract
    from ckpt_lib.testing.shared_store_contract import SharedStoreContract
    from ckpt_lib.testing.store_contract import StoreContract

__all__ = [
    "OPERATIONS",
    "BitFlip",
    "FaultPlan",
    "FaultyStore",
    "FormatContract",
    "SharedStoreContract",
    "StoreContract",
    "faults_injected",
]

_CONTRACTS = {
    "FormatContract": "format_contract",
    "SharedStoreContract": "shared_store_contract",
    "StoreContract": "store_contract",
}


def __getattr__(name: str) -> Any:
    if name in _CONTRACTS:
        return getattr(import_module(f"{__name__}.{_CONTRACTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
