"""The server of one attempt at a secure sum (Bonawitz et al. 2017, ePrint 2017/281; Bell et al. 2020, ePrint 2020/704).

It passes messages between clients, keeps who is still there, adds masked vectors up as they arrive, and takes the masks
away from the sum. Its checks keep an attempt alive when a client lies; no client relies on them.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from security.identity import verify
from security.secure_sum import channel
from security.secure_sum.aborts import Abort, SecureSumError
from security.secure_sum.attempt import PHASES, Attempt, Phase
from security.secure_sum.masks import apply_masks
from security.secure_sum.messages import (
    Answer,
    Confirmation,
    Confirmations,
    Inbox,
    KeyList,
    Offer,
    Shares,
    Survivors,
    decode,
    encode,
)
from security.secure_sum.sharing import ShareError, rebuild_checked


class SumServer:
    """One attempt at the server: announce it; then for each phase take replies, close it, send what closing it gives.

    `take_*` raises `SecureSumError` for a reply that is refused: who sent it falls out, unless it only came too late or
    twice, and the attempt goes on. Closing a phase (`key_list`, `inboxes`, `survivors`, `confirmations`, `result`)
    drops whoever has not answered, and raises `SecureSumError` if too few are left: then the attempt is over, and
    nothing was or will be opened.
    """

    def __init__(self, attempt: Attempt, roster: Mapping[str, str] | None = None) -> None:
        """Begin an attempt.

        Args:
            attempt: a number never announced before in this run, and a fresh nonce.
            roster: public identities by name, to find out who signs wrongly; without it the clients will.

        Raises:
            ValueError: the roster lacks a client of the cohort.
        """
        if roster is not None and not set(attempt.cohort) <= roster.keys():
            raise ValueError("the roster lacks a client of the cohort")
        self.attempt: Final = attempt
        self._roster = roster
        self._lock = threading.RLock()
        self._phase = Phase.KEYS
        self._waiting = set(range(len(attempt.cohort)))
        self._answered: set[int] = set()
        self._dropped: dict[str, Phase] = {}
        self._wrong_shares: set[tuple[str, str]] = set()
        self._offers: dict[int, Offer] = {}
        self._view = b""
        self._sealed: dict[int, dict[int, bytes]] = {}
        self._holders: dict[int, frozenset[int]] = {}  # of whose shares; the owner is one of them
        self._sum: NDArray[Any] = np.zeros(attempt.length, attempt.dtype)
        self._survivors: tuple[int, ...] = ()
        self._signatures: dict[int, bytes] = {}
        self._answers: dict[int, dict[int, bytes]] = {}

    # --- where it stands

    @property
    def phase(self) -> Phase:
        """Whose replies are taken now."""
        return self._phase

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Who may still answer in this phase."""
        with self._lock:
            return self._names(self._waiting)

    @property
    def answered(self) -> tuple[str, ...]:
        """Who has answered in this phase."""
        with self._lock:
            return self._names(self._answered)

    @property
    def dropped(self) -> Mapping[str, Phase]:
        """Who fell out, and in which phase: refused, said to be gone, or not there when it was closed."""
        with self._lock:
            return MappingProxyType(dict(self._dropped))

    @property
    def survivor_names(self) -> tuple[str, ...]:
        """Whose vectors are in the sum; empty before phase `survivors`."""
        with self._lock:
            return self._names(self._survivors)

    @property
    def wrong_shares(self) -> frozenset[tuple[str, str]]:
        """Shares found to be wrong: (whose secret, who held it). One of the two lied, likely who is in many pairs."""
        with self._lock:
            return frozenset(self._wrong_shares)

    def drop(self, name: str) -> None:
        """Say that a client won't answer in this phase any more; nothing changes for one that has.

        Raises:
            SecureSumError: it isn't in the cohort.
        """
        with self._lock:
            index = self._index(name)
            if index in self._waiting:
                self._drop(index)

    # --- the phases

    def announcement(self) -> bytes:
        """What every client of the cohort is sent first; the same bytes for all."""
        return encode(self.attempt, self.attempt)

    def take_offer(self, name: str, reply: bytes) -> None:
        """A client's keys.

        Raises:
            SecureSumError: they are refused: weak, another's too, not signed by it, or out of turn.
        """
        with self._taking(Phase.KEYS, name) as index:
            offer = decode(reply, Offer, self.attempt)
            channel.check_keys({**self._offers, index: offer})
            self._check_signature(index, offer.signature, channel.offer_text(self.attempt, index, offer))
            self._offers[index] = offer

    def key_list(self) -> bytes:
        """Close phase `keys`: what everyone who offered keys is sent; the same bytes for all.

        Raises:
            SecureSumError: too few did.
            ValueError: it isn't the turn of this phase.
        """
        with self._closing(Phase.KEYS):
            self._view = channel.view_of(self.attempt, self._offers)
            return encode(self.attempt, KeyList(offers=self._offers))

    def take_shares(self, name: str, reply: bytes) -> None:
        """A client's shares, sealed for the holders it chose.

        Raises:
            SecureSumError: they are refused: for others or fewer than they must be, damaged, or out of turn.
        """
        with self._taking(Phase.SHARES, name) as index:
            sealed = decode(reply, Shares, self.attempt).sealed
            others = self._offers.keys() - {index}
            if not sealed.keys() <= others:
                raise SecureSumError(Abort.NOT_IN_COHORT)
            if len(sealed) != self.attempt.holders_among(len(self._offers)):
                raise SecureSumError(Abort.MISSING_SHARE)
            self._sealed[index] = sealed
            self._holders[index] = frozenset((*sealed, index))

    def inboxes(self) -> dict[str, bytes]:
        """Close phase `shares`: what each of those who are left is sent, by name.

        Who shared with so many that fell out that its mask couldn't be taken away is left out as well.

        Raises:
            SecureSumError: too few are left.
            ValueError: it isn't the turn of this phase.
        """
        with self._closing(Phase.SHARES, self._with_holders):
            sharing = tuple(sorted(self._waiting))
            inboxes: dict[int, dict[int, bytes]] = {index: {} for index in sharing}
            for sender in sharing:
                for holder, sealed in self._sealed[sender].items():
                    if holder in inboxes:
                        inboxes[holder][sender] = sealed
            self._holders = {index: self._holders[index] for index in sharing}
            self._sealed = {}
            return {
                self.attempt.cohort[index]: encode(self.attempt, Inbox(sharing=sharing, sealed=inbox))
                for index, inbox in inboxes.items()
            }

    def take_masked(self, name: str, vector: NDArray[Any]) -> None:
        """A client's masked vector. It is added to the sum and not kept.

        Raises:
            SecureSumError: it is refused: of another type or length, or out of turn.
        """
        with self._taking(Phase.MASKED, name):
            if vector.dtype != self.attempt.dtype or vector.shape != (self.attempt.length,):
                raise SecureSumError(Abort.WRONG_VECTOR)
            self._sum += vector

    def survivors(self) -> bytes:
        """Close phase `masked`: what everyone whose vector arrived is sent; the same bytes for all.

        Raises:
            SecureSumError: too few did, or of too few the masks could be taken away.
            ValueError: it isn't the turn of this phase.
        """
        with self._closing(Phase.MASKED):
            self._survivors = tuple(sorted(self._waiting))
            return encode(self.attempt, Survivors(survivors=self._survivors))

    def take_confirmation(self, name: str, reply: bytes) -> None:
        """A client's signature over the survivors.

        Raises:
            SecureSumError: it is refused: a signature of something else, or out of turn.
        """
        with self._taking(Phase.SURVIVORS, name) as index:
            signature = decode(reply, Confirmation, self.attempt).signature
            self._check_signature(index, signature, channel.survivors_text(self._view, self._survivors))
            self._signatures[index] = signature

    def confirmations(self) -> bytes:
        """Close phase `survivors`: what everyone who confirmed is sent; the same bytes for all.

        Raises:
            SecureSumError: too few did.
            ValueError: it isn't the turn of this phase.
        """
        with self._closing(Phase.SURVIVORS):
            return encode(self.attempt, Confirmations(signatures=self._signatures))

    def take_answer(self, name: str, reply: bytes) -> None:
        """A client's shares for unmasking.

        Raises:
            SecureSumError: it is refused: not all and only the shares that it holds, or out of turn.
        """
        with self._taking(Phase.UNMASK, name) as index:
            shares = decode(reply, Answer, self.attempt).shares
            if shares.keys() != {owner for owner, holders in self._holders.items() if index in holders}:
                raise SecureSumError(Abort.MISSING_SHARE)
            self._answers[index] = shares

    def result(self) -> NDArray[Any]:
        """Close phase `unmask`: the sum of the survivors' vectors modulo 2^bits.

        Raises:
            SecureSumError: too few shares came, or too many are wrong (`wrong_shares` has those found until then).
            ValueError: it isn't the turn of this phase.
        """
        with self._closing(Phase.UNMASK):
            add: list[bytes] = []
            subtract: list[bytes] = []
            for owner, holders in self._holders.items():
                if owner in self._survivors:
                    subtract.append(channel.self_mask_key(self.attempt, self._seed_of(owner)))
                    continue
                key = channel.private_key(self._mask_secret_of(owner))
                for peer in self._survivors:
                    if peer in holders or owner in self._holders[peer]:
                        # The survivor added this mask if it stands before the one that fell out, else subtracted it.
                        mine = channel.mask_key(self.attempt, key, owner, self._offers[peer].mask_key, peer)
                        (subtract if peer < owner else add).append(mine)
            apply_masks(self._sum, add=add, subtract=subtract)
            return self._sum

    # --- turns

    @contextmanager
    def _taking(self, phase: Phase, name: str) -> Iterator[int]:
        with self._lock:
            index = self._index(name)
            if self._phase is not phase:
                raise SecureSumError(Abort.OUT_OF_ORDER)
            if index in self._answered:
                raise SecureSumError(Abort.ALREADY_ANSWERED)
            if index not in self._waiting:
                raise SecureSumError(Abort.OUT_OF_ORDER)
            try:
                yield index
            except SecureSumError:
                self._drop(index)
                raise
            self._waiting.discard(index)
            self._answered.add(index)

    @contextmanager
    def _closing(self, phase: Phase, left: Callable[[Collection[int]], set[int]] = set) -> Iterator[None]:
        """End a phase; those that are left of it are waited for in the next."""
        with self._lock:
            if self._phase is not phase:
                raise ValueError(f"phase {phase} can't be closed in phase {self._phase}")
            there = left(self._answered)
            for index in (self._waiting | self._answered) - there:
                self._drop(index)
            shortage = self._shortage(there)
            try:
                if shortage is not None:
                    raise SecureSumError(shortage)
                self._waiting, self._answered = there, set()
                self._phase = PHASES[PHASES.index(phase) + 1]
                yield
            except BaseException:
                self._phase = Phase.ABORTED
                self._waiting = set()
                self._answered = set()
                self._forget()
                raise
            if self._phase is Phase.OVER:
                self._waiting = set()
                self._forget()

    def _drop(self, index: int) -> None:
        self._waiting.discard(index)
        self._answered.discard(index)
        self._dropped[self.attempt.cohort[index]] = self._phase

    def _forget(self) -> None:
        self._answers = {}
        self._sum = np.zeros(0, self.attempt.dtype)

    # --- who is left

    def _index(self, name: str) -> int:
        index = self.attempt.indices.get(name)
        if index is None:
            raise SecureSumError(Abort.NOT_IN_COHORT)
        return index

    def _names(self, indices: Collection[int]) -> tuple[str, ...]:
        return tuple(self.attempt.cohort[index] for index in sorted(indices))

    def _with_holders(self, sharing: Collection[int]) -> set[int]:
        """Those of whom enough holders are left, counting only such as are left themselves."""
        left = set(sharing)
        least = self.attempt.parameters.threshold
        while few := {index for index in left if len(self._holders[index] & left) < least}:
            left -= few
        return left

    def _shortage(self, there: set[int]) -> Abort | None:
        """Why so few are not enough to end this phase with."""
        found = self.attempt.parameters
        if self._phase is not Phase.UNMASK and len(there) < found.least:
            return Abort.TOO_FEW_CLIENTS
        if self._phase in (Phase.MASKED, Phase.SURVIVORS, Phase.UNMASK):
            # Better to stop before anybody signs or gives away a share than to find out at the end.
            few = any(len(holders & there) < found.threshold for holders in self._holders.values())
            return Abort.TOO_FEW_SHARES if few else None
        if self.attempt.holders_among(len(there)) + 1 < found.threshold:
            return Abort.TOO_FEW_HOLDERS
        return None

    # --- checks

    def _check_signature(self, index: int, signature: bytes, text: bytes) -> None:
        if self._roster is not None and not verify(self._roster[self.attempt.cohort[index]], signature, text):
            raise SecureSumError(Abort.BAD_SIGNATURE if self._phase is Phase.KEYS else Abort.SURVIVORS_DIFFER)

    def _seed_of(self, owner: int) -> bytes:
        return self._rebuilt(owner, lambda seed: channel.is_committed(self.attempt, owner, self._offers[owner], seed))

    def _mask_secret_of(self, owner: int) -> bytes:
        return self._rebuilt(owner, lambda secret: channel.public_key(secret) == self._offers[owner].mask_key)

    def _rebuilt(self, owner: int, is_right: Callable[[bytes], bool]) -> bytes:
        shares = {holder + 1: answer[owner] for holder, answer in self._answers.items() if owner in answer}
        try:
            secret, wrong = rebuild_checked(shares, threshold=self.attempt.parameters.threshold, is_right=is_right)
        except ShareError:
            raise SecureSumError(Abort.WRONG_SHARE) from None
        self._wrong_shares |= {(self.attempt.cohort[owner], self.attempt.cohort[x - 1]) for x in wrong}
        return secret
