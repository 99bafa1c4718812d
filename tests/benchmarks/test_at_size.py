"""Bytes that devices send, read from the text of compiled programs, and the batch that a straight line allows."""

import pytest

pytest.importorskip("ml_collections")

from benchmarks.at_size import MEMORY, largest_batch, sent

PROGRAMS = {
    # A ring of n sends 2 (n - 1)/n of what is summed, and (n - 1)/n of the whole that is gathered or scattered.
    "%a = f32[8,128]{1,0:T(8,128)} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%sum": {
        "all-reduce": 2 * 3 / 4 * 4096
    },
    "%a = (f32[256]{0}, bf16[64]{0}) all-reduce(%x, %y), replica_groups=[4,4]<=[16], to_apply=%sum": {
        "all-reduce": 2 * 3 / 4 * (1024 + 128)
    },
    "%g = bf16[16,64]{1,0} all-gather(%x), replica_groups=[1,16]<=[16], dimensions={0}": {"all-gather": 15 / 16 * 2048},
    "%g = (bf16[1,64]{1,0}, bf16[16,64]{1,0}) all-gather-start(%x), replica_groups=[1,16]<=[16]": {
        "all-gather": 15 / 16 * 2048
    },
    "%g = bf16[16,64]{1,0} all-gather-done(%g)": {},  # its start was counted
    "%s = f32[32]{0} reduce-scatter(%x), replica_groups={{0,1}}, dimensions={0}": {"reduce-scatter": 128},
    "%p = u32[3]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}": {"collective-permute": 12},
    "%f = f32[8]{0} fusion(%all-reduce.3), kind=kLoop": {},  # what only reads one
}


@pytest.mark.parametrize("line", PROGRAMS)
def test_bytes_sent_are_those_of_a_ring(line: str) -> None:
    assert sent(f"ENTRY %main {{\n  {line}\n}}", 16) == pytest.approx(PROGRAMS[line])


def test_the_largest_batch_fills_the_memory_but_for_what_is_left_free() -> None:
    state, example = 3e9, 2e7
    rows = [{"mesh": mesh, "batch": 512, "bytes": state + example * each} for mesh, each in (("4x4", 32), ("8x8", 8))]
    found = largest_batch(*rows)
    assert state + example * found <= 0.95 * MEMORY < state + example * (found + 1)
