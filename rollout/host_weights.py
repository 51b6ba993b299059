"""A host's weights: pulled from the learner, put where its actors can map them.

In lockstep every version is pulled, in order, whatever is newest by then; in async only the newest,
one at a time. The learner answers a pull with the weights or, if it has let go of them, by
announcing its newest version once more.
"""

import hashlib
from collections import deque
from collections.abc import Callable

from rollout import control
from rollout.host_memory import HostPage, WeightsFiles
from rollout.plan import HostPlan

RETRY_S = 0.2  # between attempts to write a file
GIVE_UP_S = 2.0  # a memory that is full for so long will hardly be empty soon
KEPT_IN_ASYNC = 2  # the newest, and the one that an actor may be about to map


class HostWeights:
    """tell: sends a message to the learner."""

    def __init__(
        self,
        plan: HostPlan,
        page: HostPage,
        files: WeightsFiles,
        tell: Callable[[control.ToLearner], None],
    ) -> None:
        self._plan = plan
        self._page = page
        self._files = files
        self._tell = tell
        self._newest = -1  # announced
        self._digests: dict[int, bytes] = {}  # of what is announced and not here yet
        self._pulled: deque[int] = deque()  # and not answered yet; answers keep the order
        self._unwritten: deque[tuple[int, bytes]] = deque()
        self._kept: deque[int] = deque()
        self._retry_at_s: float | None = None
        self._give_up_at_s: float | None = None

    def __repr__(self) -> str:
        return f"HostWeights(version {self._page.version}, {len(self._pulled)} pulled)"

    def on_announce(self, message: control.Announce) -> None:
        """The learner has a version, or has none but that any more."""
        if message.version > self._newest:
            self._newest = message.version
            self._digests[message.version] = message.digest
            if self._plan.is_lockstep:
                self._pull(message.version)
        elif self._pulled:
            self._digests.pop(self._pulled.popleft(), None)
        self._pull_newest()

    def on_weights(self, version: int, weights: bytes) -> None:
        """What was pulled is here; `write_due` puts it into its place."""
        digest = self._digests.pop(version, None)
        if digest is None or version not in self._pulled:
            return
        self._pulled.remove(version)
        if hashlib.sha256(weights).digest() != digest:
            self._tell(control.Failed(f"weights version {version} arrived damaged"))
            return
        self._unwritten.append((version, weights))
        self._pull_newest()

    def next_due_s(self) -> float | None:
        """When writing is to be tried again."""
        return self._retry_at_s

    def write_due(self, now_s: float) -> None:
        """Put what is here into its place, and tell the actors."""
        while self._unwritten and (self._retry_at_s is None or self._retry_at_s <= now_s):
            version, weights = self._unwritten[0]
            try:
                self._files.write(version, weights)
            except OSError as error:
                self._on_unwritable(version, len(weights), error, now_s)
                return
            self._unwritten.popleft()
            self._retry_at_s = self._give_up_at_s = None
            self._page.publish(version)
            self._forget_older()

    def _on_unwritable(self, version: int, size: int, error: OSError, now_s: float) -> None:
        """Someone else may need the memory for a moment only."""
        if self._give_up_at_s is None:
            self._give_up_at_s = now_s + GIVE_UP_S
        if now_s < self._give_up_at_s:
            self._retry_at_s = now_s + RETRY_S
            return
        self._unwritten.clear()
        self._retry_at_s = None
        reason = (
            f"cannot write weights version {version} ({size} bytes) to {self._files.directory}: "
            f"{error.strerror}; free some space there or set ROLLOUT_SHM_DIR to another tmpfs"
        )
        self._tell(control.Failed(reason))

    def _pull_newest(self) -> None:
        if not self._plan.is_lockstep and not self._pulled and self._newest in self._digests:
            self._pull(self._newest)
            self._digests = {self._newest: self._digests[self._newest]}

    def _pull(self, version: int) -> None:
        self._pulled.append(version)
        self._tell(control.Pull(version))

    def _forget_older(self) -> None:
        """Remove the files that no unroll will be acted with any more."""
        newest = self._page.version
        self._kept.append(newest)
        while (
            # While version v is the newest, unrolls may still be acted with v - policy_lag.
            self._kept[0] < newest - self._plan.policy_lag
            if self._plan.is_lockstep
            else len(self._kept) > KEPT_IN_ASYNC
        ):
            self._files.remove(self._kept.popleft())
