"""What a client remembers from round to round of a run: all of it is kept once a reply may leave, and not before."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import RecordDict

from client.error_feedback import ErrorFeedback
from client.personal import Personal
from client.variate import Variate


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A client's memory in one request.

    Attributes:
        feedback: what compressed updates have left out.
        variate: SCAFFOLD's.
        personal: what of the model is the client's own.
    """

    feedback: ErrorFeedback
    variate: Variate
    personal: Personal

    def answered(self, reply: RecordDict, *, own: bool) -> None:
        """Keep what belongs to a reply that may leave now.

        Args:
            reply: that leaves.
            own: whether this request's work made it, and not another process or an earlier one.
        """
        self.feedback.answered(reply)
        self.variate.answered(reply)
        if own:  # a head that belongs to no update that left would be a second release of the round
            self.personal.answered()
