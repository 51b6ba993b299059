"""Stacked frames for learning: each observation is held once, and read with those before it.

A stack is an observation and k-1 places in a bank of single frames. Rows are shuffled and cut with
their places, so stacks exist only of the rows that one pass through the network takes; the bank
costs a copy of the batch's observations.
"""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, eq=False)
class Frames:
    """What comes before each observation of some rows in a stack of k, oldest first.

    bank: [F, *obs_shape], single frames; number 0 is zeros. place: int64 [R, k-1], where the frames
    are in it.
    """

    bank: torch.Tensor
    place: torch.Tensor

    def at(self, place: torch.Tensor) -> "Frames":
        """Of other rows, from the same bank."""
        return replace(self, place=place)

    def stacked(self, observation: torch.Tensor) -> torch.Tensor:
        """The frames with the observations [R, *obs_shape] behind them, [R, k, *obs_shape]."""
        before = self.bank.index_select(0, self.place.flatten())
        shape = (*self.place.shape, *observation.shape[1:])
        return torch.cat([before.view(shape), observation.unsqueeze(1)], dim=1)


@dataclass(frozen=True, eq=False)
class UnrollFrames:
    """The stacks of all rows of unrolls.

    frames: its place is that of whole stacks, int64 [T+1, B, k].
    """

    frames: Frames

    @classmethod
    def of(
        cls, observation: torch.Tensor, before: torch.Tensor, is_first: torch.Tensor
    ) -> "UnrollFrames | None":
        """None where observations are read alone.

        observation: [T+1, B, *obs_shape]. before: [B, k-1, *obs_shape], as Unroll.frames.
        is_first: bool [T+1, B], where an episode begins; the frames before are zeros from there.
        """
        (rows, columns), num_before = is_first.shape, before.shape[1]
        if not num_before:
            return None
        zeros = observation.new_zeros((1, *observation.shape[2:]))
        bank = torch.cat([zeros, before.transpose(0, 1).flatten(0, 1), observation.flatten(0, 1)])
        row = torch.arange(rows, device=is_first.device).view(-1, 1, 1)
        column = torch.arange(columns, device=is_first.device).view(1, -1, 1)
        begin = torch.where(is_first.unsqueeze(2), row, -num_before).cummax(0).values
        source = row - torch.arange(num_before, -1, -1, device=is_first.device)
        place = 1 + (source + num_before) * columns + column
        return cls(Frames(bank, torch.where(source >= begin, place, 0)))

    def of_steps(self) -> Frames:
        """Of rows 0 to T-1, [T*B]."""
        return self.frames.at(self.frames.place[:-1, :, :-1].flatten(0, 1))

    def of_last(self, ends: torch.Tensor) -> Frames:
        """Of row T, [B], and behind these of final observations, [F].

        ends: int64 [F], the rows t * B + column that these came of.
        """
        place = self.frames.place
        return self.frames.at(torch.cat([place[-1, :, :-1], place.flatten(0, 1)[ends, 1:]]))
