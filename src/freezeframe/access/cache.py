"""Blobs that were opened lately, in a bounded memory, and threads that open the next ones.

Decrypting, decompressing and hashing a chunk takes milliseconds, and who reads a disk reads a
few kilobytes at a time. So each blob is opened once, by whoever asks first; others who want
it meanwhile wait for that. Blobs are known by their ids, so what several disks or images have
in common is held once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TypeAlias

import numpy as np

from freezeframe.core.closing import Closing
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.units import MIB
from freezeframe.repo.pack import BlobKind
from freezeframe.repo.reader import BlobReader, Proof
from freezeframe.system.workers import default_threads

#: Bytes of opened blobs that are kept, if nobody says otherwise.
CACHE_BYTES = 128 * MIB

_Flight: TypeAlias = Future[bytes]


class BlobCache(Closing):
    """Opened data blobs, the ones used last, up to `limit` bytes. Thread-safe.

    To be shared by all disks of one repository. `threads` open blobs ahead of who reads; what
    they are at work on comes on top of the limit: one chunk each.
    """

    def __init__(self, limit: int = CACHE_BYTES, *, threads: int | None = None) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._held: OrderedDict[bytes, bytes] = OrderedDict()
        #: Bytes held.
        self.size = 0
        #: Being opened, or waiting for a thread to do it.
        self._flights: dict[bytes, _Flight] = {}
        self._pool = ThreadPoolExecutor(threads or default_threads(), thread_name_prefix="ahead")
        self._closed = False

    def read(self, blobs: BlobReader, blob_id: bytes, proof: Proof | None = None) -> bytes:
        """Return a blob. `proof` and errors as `BlobReader.read`."""
        with self._lock:
            found = self._held.get(blob_id)
            if found is not None:
                self._held.move_to_end(blob_id)
                return found
            flight = self._flights.get(blob_id)
            if flight is None:
                mine = self._flights[blob_id] = _Flight()
                mine.set_running_or_notify_cancel()
        if flight is not None:
            try:
                return flight.result()
            except CancelledError:
                return blobs.read(BlobKind.DATA, blob_id, proof)
        self._open(blobs, blob_id, mine, proof)
        return mine.result()

    def ahead(self, blobs: BlobReader, ids: Iterable[bytes], proof: Proof | None = None) -> None:
        """Begin to open blobs that are neighbours on a disk, if they are not there yet.

        `proof` is of the one blob, where it is one.

        An error is told to who reads the blob it hits, and to nobody else.
        """
        with self._lock:
            if self._closed:
                return
            wanted = dict.fromkeys(
                blob for blob in ids if blob not in self._held and blob not in self._flights
            )
            flights = {blob: _Flight() for blob in wanted}
            self._flights.update(flights)
            if flights:
                self._pool.submit(self._open_many, blobs, flights, proof)

    def _open_many(
        self, blobs: BlobReader, flights: dict[bytes, _Flight], proof: Proof | None
    ) -> None:
        for flight in flights.values():
            flight.set_running_or_notify_cancel()
        if len(flights) == 1:
            for blob_id, flight in flights.items():
                self._open(blobs, blob_id, flight, proof)
            return
        try:
            ids = np.frombuffer(b"".join(flights), np.uint8).reshape(-1, 32)
            read: Sequence[bytes] = blobs.read_many(BlobKind.DATA, ids)
        except FreezeframeError:
            # One of them is bad: each by itself, so that it alone is missed.
            for blob_id, flight in flights.items():
                self._open(blobs, blob_id, flight, None)
        except BaseException as error:
            for blob_id, flight in flights.items():
                self._failed(blob_id, flight, error)
        else:
            for (blob_id, flight), data in zip(flights.items(), read, strict=True):
                self._done(blob_id, flight, data)

    def _open(
        self, blobs: BlobReader, blob_id: bytes, flight: _Flight, proof: Proof | None
    ) -> None:
        try:
            data = blobs.read(BlobKind.DATA, blob_id, proof)
        except BaseException as error:
            self._failed(blob_id, flight, error)
        else:
            self._done(blob_id, flight, data)

    def _done(self, blob_id: bytes, flight: _Flight, data: bytes) -> None:
        with self._lock:
            self._flights.pop(blob_id, None)
            if not self._closed and len(data) <= self.limit:
                self._held[blob_id] = data
                self.size += len(data)
                while self.size > self.limit:
                    self.size -= len(self._held.popitem(last=False)[1])
        flight.set_result(data)

    def _failed(self, blob_id: bytes, flight: _Flight, error: BaseException) -> None:
        with self._lock:
            self._flights.pop(blob_id, None)
        flight.set_exception(error)

    def close(self) -> None:
        """End the threads and forget all. Reading goes on without a cache."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            # Those whose turn never came; others cannot be cancelled.
            left = list(self._flights.values())
            self._flights.clear()
            self._held.clear()
            self.size = 0
        for flight in left:
            flight.cancel()
