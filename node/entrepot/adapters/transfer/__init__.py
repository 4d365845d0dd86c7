"""Bulk bytes between a node and a bucket, over plain HTTP on signed URLs."""

from entrepot.adapters.transfer.connections import is_direct
from entrepot.adapters.transfer.requests import (
    CancelToken,
    Moved,
    PutOutcome,
    SignedRequest,
    TransferSettings,
    agent,
)
from entrepot.adapters.transfer.transfers import Transfers

__all__ = ["CancelToken", "Moved", "PutOutcome", "SignedRequest", "TransferSettings", "Transfers", "agent", "is_direct"]
