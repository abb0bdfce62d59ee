"""A client of one attempt at a secure sum (Bonawitz et al. 2017, ePrint 2017/281; Bell et al. 2020, ePrint 2020/704).

It believes nothing of the server's but what the other clients signed, answers each phase once, and forgets its secrets
as soon as they aren't needed. After a refusal the attempt is over for it. What hides its vector:

- Its self mask is taken away only with shares that honest clients give once enough clients have signed one and the
  same set of survivors, over one and the same list of keys (`least`: two such sets can't both have so many).
- For each peer it gives the share of the seed or of the mask key, by that one set: never both.
- It chose itself, after everybody's keys were fixed, who holds its shares.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from security.identity import verify
from security.secure_sum import channel
from security.secure_sum.aborts import Abort, SecureSumError
from security.secure_sum.attempt import PHASES, Announcement, Attempt, Expected, Phase
from security.secure_sum.field import Entropy
from security.secure_sum.masks import apply_masks
from security.secure_sum.messages import (
    PAIR_BYTES,
    Answer,
    Confirmation,
    Confirmations,
    Inbox,
    KeyList,
    Offer,
    Shares,
    State,
    Survivors,
    decode,
    encode,
)
from security.secure_sum.sharing import SHARE_BYTES, share

_CHOICE_BYTES: Final = 8


class SumClient:
    """One attempt at one client. Make it with `begin`; then each phase once, in the order of the methods.

    Every method raises `SecureSumError` for what it refuses. A refused message ends the attempt for this client, and
    its secrets are forgotten; being asked out of turn or again is refused too, and changes nothing.
    """

    __slots__ = ("_entropy", "_expected", "_lock", "_sign", "_state", "attempt")

    def __init__(
        self, attempt: Attempt, state: State, expected: Expected, sign: Callable[[bytes], bytes], entropy: Entropy
    ) -> None:
        """For `begin` and `from_bytes`."""
        self.attempt: Final = attempt
        self._state = state
        self._expected = expected
        self._sign = sign
        self._entropy = entropy
        self._lock = threading.Lock()

    @classmethod
    def begin(
        cls,
        announcement: bytes,
        expected: Expected,
        sign: Callable[[bytes], bytes],
        entropy: Entropy = os.urandom,
    ) -> tuple[Self, bytes]:
        """Take part in an announced attempt: phase `keys`.

        Args:
            announcement: what the server sent.
            expected: what this client will take part in.
            sign: signs with this client's identity (`Identity.sign`), whose public key is in the roster.
            entropy: of the secrets; anything but the operating system's is for tests.

        Returns:
            The client and its reply: fresh public keys, signed.

        Raises:
            SecureSumError: this attempt is not what is expected, or was begun before.
        """
        attempt = expected.attempt(decode(announcement, Announcement))
        decode(announcement, Announcement, attempt)  # or the server computed other parameters
        if expected.used(attempt):
            raise SecureSumError(Abort.ATTEMPT_USED)
        mask_secret, channel_secret, seed = (entropy(channel.SECRET_BYTES) for _ in range(3))
        own = attempt.indices[expected.client]
        unsigned = Offer(
            mask_key=channel.public_key(mask_secret),
            channel_key=channel.public_key(channel_secret),
            commitment=channel.commitment(attempt, own, seed),
            signature=b"",
        )
        offer = replace(unsigned, signature=sign(channel.offer_text(attempt, own, unsigned)))
        state = State(
            announcement=attempt,
            phase=Phase.SHARES,
            mask_secret=mask_secret,
            channel_secret=channel_secret,
            seed=seed,
            offer_signature=offer.signature,
            held={},
        )
        return cls(attempt, state, expected, sign, entropy), encode(attempt, offer)

    @property
    def phase(self) -> Phase:
        """What it is to be asked for next; `OVER` after its last answer, `ABORTED` after a refusal."""
        return self._state.phase

    def share(self, key_list: bytes) -> bytes:
        """Phase `shares`: check everybody's keys, share both secrets among the holders it chooses, sealed for each.

        Raises:
            SecureSumError: the list is not what the clients signed, lacks too many, or came out of turn.
        """
        with self._answering(Phase.SHARES) as state:
            offers = decode(key_list, KeyList, self.attempt).offers
            self._check_offers(offers)
            others = [index for index in offers if index != self._own]
            count = self.attempt.holders_among(len(offers))
            if count + 1 < self.attempt.parameters.threshold:
                raise SecureSumError(Abort.TOO_FEW_HOLDERS)
            holders = _chosen(others, count, self._entropy)
            view = channel.view_of(self.attempt, offers)
            pairs = self._pairs(holders)
            key = channel.private_key(state.channel_secret)
            sealed = {
                holder: channel.seal(
                    self.attempt, view, key, self._own, offers[holder].channel_key, holder, pairs[holder]
                )
                for holder in holders
            }
            self._state = replace(
                state, key_list=KeyList(offers=offers), holders=holders, view=view, held={self._own: pairs[self._own]}
            )
            return encode(self.attempt, Shares(sealed=sealed))

    def mask(self, inbox: bytes, vector: NDArray[Any]) -> NDArray[Any]:
        """Phase `masked`: open the shares of others, and put the masks on a vector.

        Args:
            inbox: what the server sent.
            vector: numbers of the attempt's type and length, in one row. It is neither changed nor kept.

        Returns:
            A new vector that is uniform to everybody as long as its masks are not taken away.

        Raises:
            SecureSumError: too few clients or holders are left, shares are missing or damaged, or it came out of turn.
            ValueError: the vector is of another type or length; the attempt is as before.
        """
        if vector.dtype != self.attempt.dtype or vector.shape != (self.attempt.length,):
            raise ValueError(f"a vector of this attempt has {self.attempt.length} numbers of {self.attempt.dtype}")
        with self._answering(Phase.MASKED) as state:
            said = decode(inbox, Inbox, self.attempt)
            offers = state.key_list.offers
            self._check_sharing(said)
            key = channel.private_key(state.channel_secret)
            opened = {
                sender: channel.open_sealed(
                    self.attempt, state.view, key, self._own, offers[sender].channel_key, sender, sealed
                )
                for sender, sealed in said.sealed.items()
            }
            neighbours = set(state.holders).intersection(said.sharing) | said.sealed.keys()
            key = channel.private_key(state.mask_secret)
            keys = {
                peer: channel.mask_key(self.attempt, key, self._own, offers[peer].mask_key, peer) for peer in neighbours
            }
            masked = np.array(vector, order="C")
            apply_masks(
                masked,
                add=[channel.self_mask_key(self.attempt, state.seed), *_of(keys, lambda peer: peer > self._own)],
                subtract=_of(keys, lambda peer: peer < self._own),
            )
            self._state = State(  # the secrets, and all that only they needed, are forgotten
                announcement=self.attempt,
                phase=state.phase,
                view=state.view,
                sharing=said.sharing,
                held={**state.held, **opened},
            )
            return masked

    def confirm(self, survivors: bytes) -> bytes:
        """Phase `survivors`: sign whose vectors are in the sum; one set in an attempt, ever.

        Raises:
            SecureSumError: they are too few, this client isn't one, one never shared, or it came out of turn.
        """
        with self._answering(Phase.SURVIVORS) as state:
            said = decode(survivors, Survivors, self.attempt).survivors
            if not set(said) <= set(state.sharing) or self._own not in said:
                raise SecureSumError(Abort.NOT_IN_COHORT)
            self._check_enough(said)
            self._state = replace(state, survivors=said)
            return encode(self.attempt, Confirmation(signature=self._sign(channel.survivors_text(state.view, said))))

    def unmask(self, confirmations: bytes) -> bytes:
        """Phase `unmask`: give the shares that take the masks away, if enough clients confirmed the same survivors.

        Raises:
            SecureSumError: they are too few, one confirmed something else, or it came out of turn.
        """
        with self._answering(Phase.UNMASK) as state:
            said = decode(confirmations, Confirmations, self.attempt).signatures
            if not said.keys() <= set(state.survivors):
                raise SecureSumError(Abort.NOT_IN_COHORT)
            self._check_enough(said)
            text = channel.survivors_text(state.view, state.survivors)
            if not all(verify(self._identity(index), signature, text) for index, signature in said.items()):
                raise SecureSumError(Abort.SURVIVORS_DIFFER)
            surviving = set(state.survivors)
            shares = {
                index: pair[SHARE_BYTES:] if index in surviving else pair[:SHARE_BYTES]
                for index, pair in state.held.items()
            }
            self._forget(Phase.OVER)
            return encode(self.attempt, Answer(shares=shares))

    def to_bytes(self) -> bytes:
        """Everything, secrets too: for simulated clients, which have no process of their own.

        Never for a site's disk: whoever goes back to an earlier state could answer twice.
        """
        with self._lock:
            return encode(self.attempt, self._state)

    @classmethod
    def from_bytes(
        cls, data: bytes, expected: Expected, sign: Callable[[bytes], bytes], entropy: Entropy = os.urandom
    ) -> Self:
        """The client that `to_bytes` wrote.

        Raises:
            SecureSumError: these are no such bytes, or the attempt is not what is expected.
        """
        state = decode(data, State)
        attempt = expected.attempt(state.announcement)
        decode(data, State, attempt)
        return cls(attempt, state, expected, sign, entropy)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a client of a secure sum holds secrets and is not pickled or copied")

    def __repr__(self) -> str:
        return f"SumClient({self._expected.client!r}, {self.phase})"

    # --- turns

    @contextmanager
    def _answering(self, phase: Phase) -> Iterator[State]:
        """One at a time, once, in order; whatever goes wrong on the way ends the attempt."""
        with self._lock:
            now = self._state.phase
            if now is Phase.ABORTED:
                raise SecureSumError(Abort.ABORTED)
            if now is not phase:
                early = PHASES.index(now) < PHASES.index(phase)
                raise SecureSumError(Abort.OUT_OF_ORDER if early else Abort.ALREADY_ANSWERED)
            state = self._state
            try:
                yield replace(state, phase=PHASES[PHASES.index(phase) + 1])
            except BaseException:
                self._forget(Phase.ABORTED)
                raise

    def _forget(self, phase: Phase) -> None:
        self._state = State(announcement=self.attempt, phase=phase, held={})

    # --- checks

    @property
    def _own(self) -> int:
        return self.attempt.indices[self._expected.client]

    def _identity(self, index: int) -> str:
        return self._expected.roster[self.attempt.cohort[index]]

    def _check_enough(self, clients: Iterable[int]) -> None:
        if len(list(clients)) < self.attempt.parameters.least:
            raise SecureSumError(Abort.TOO_FEW_CLIENTS)

    def _check_offers(self, offers: dict[int, Offer]) -> None:
        if any(index >= len(self.attempt.cohort) for index in offers):
            raise SecureSumError(Abort.NOT_IN_COHORT)
        own, state = offers.get(self._own), self._state
        sent = Offer(
            mask_key=channel.public_key(state.mask_secret),
            channel_key=channel.public_key(state.channel_secret),
            commitment=channel.commitment(self.attempt, self._own, state.seed),
            signature=state.offer_signature,
        )
        if own != sent:
            raise SecureSumError(Abort.VIEWS_DIFFER)
        self._check_enough(offers)
        channel.check_keys(offers)
        for index, offer in offers.items():
            if not verify(self._identity(index), offer.signature, channel.offer_text(self.attempt, index, offer)):
                raise SecureSumError(Abort.BAD_SIGNATURE)

    def _check_sharing(self, said: Inbox) -> None:
        sharing, state = set(said.sharing), self._state
        others = sharing - {self._own}
        if not sharing <= state.key_list.offers.keys() or self._own not in sharing or not said.sealed.keys() <= others:
            raise SecureSumError(Abort.NOT_IN_COHORT)
        self._check_enough(sharing)
        if len(others.intersection(state.holders)) + 1 < self.attempt.parameters.threshold:
            raise SecureSumError(Abort.TOO_FEW_HOLDERS)
        everyone_holds = len(state.holders) == len(state.key_list.offers) - 1
        if everyone_holds and said.sealed.keys() != others:
            raise SecureSumError(Abort.MISSING_SHARE)

    def _pairs(self, holders: Iterable[int]) -> dict[int, bytes]:
        """Both shares of each holder and of this client itself. A holder's place on the polynomials is index + 1."""
        at = sorted(index + 1 for index in (*holders, self._own))
        threshold = self.attempt.parameters.threshold
        mask_shares = share(self._state.mask_secret, at=at, threshold=threshold, entropy=self._entropy)
        seed_shares = share(self._state.seed, at=at, threshold=threshold, entropy=self._entropy)
        pairs = {x - 1: mask_shares[x] + seed_shares[x] for x in at}
        assert all(len(pair) == PAIR_BYTES for pair in pairs.values())
        return pairs


def _chosen(others: list[int], count: int, entropy: Entropy) -> tuple[int, ...]:
    """So many of them, every choice equally likely (Fisher and Yates), in ascending order."""
    pool = list(others)
    if count < len(pool):
        for place in range(count):
            pick = place + _below(len(pool) - place, entropy)
            pool[place], pool[pick] = pool[pick], pool[place]
    return tuple(sorted(pool[:count]))


def _below(bound: int, entropy: Entropy) -> int:
    fair = (1 << 8 * _CHOICE_BYTES) // bound * bound
    while (drawn := int.from_bytes(entropy(_CHOICE_BYTES), "big")) >= fair:
        pass
    return drawn % bound


def _of(keys: dict[int, bytes], wanted: Callable[[int], bool]) -> list[bytes]:
    return [key for peer, key in keys.items() if wanted(peer)]
