"""Helpers of test_checked.py, in a file of their own: they write where they are told."""

import numba


def write(board, row):
    write_at(board, row)


def write_at(board, row):
    board[row, 0] = 7


@numba.njit
def decorated(board, row):
    write_at(board, row)


def make_writer(row):
    def write_behind(board):
        board[row, 3] = 7

    return write_behind
