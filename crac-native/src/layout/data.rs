//! Where page data lie in an image, and the blocks in which they are summed.

use super::PAGE;

/// The largest piece of a file that one page fault maps at once, on a processor with pages of 4 KiB.
pub const HUGE_PAGE: u64 = 2 << 20;

/// Where in the image the page data of a run goes whose neighbour in front ends at `free_at`: behind it, at the same distance from
/// a multiple of the largest power of two that the run is as long as (at most [`HUGE_PAGE`]).
///
/// The page cache keeps what was written at once in large folios, aligned in the file. Where file and memory are aligned alike, a
/// page fault maps a whole one. What is left free is a hole.
pub const fn place_data(start: u64, end: u64, free_at: u64) -> Option<u64> {
    let unit = match end.saturating_sub(start).checked_ilog2() {
        Some(log) if 1 << log < HUGE_PAGE => 1 << log,
        Some(_) => HUGE_PAGE,
        None => PAGE,
    };
    free_at.checked_add(start.wrapping_sub(free_at) & (unit - 1))
}

/// Page data are summed in blocks of the file, holes between runs included, so that they can be checked side by side. A block is as
/// large, and aligned, as a huge page: no two threads that read blocks fill the same one.
pub const BLOCK: u64 = HUGE_PAGE;

/// How many blocks page data have that begin and end there in the file.
pub const fn block_count(data_offset: u64, file_bytes: u64) -> u64 {
    if file_bytes <= data_offset { 0 } else { file_bytes.div_ceil(BLOCK) - data_offset / BLOCK }
}

/// Where in the file block `number` of [`block_count`] begins and ends.
pub const fn block_of(data_offset: u64, file_bytes: u64, number: u64) -> (u64, u64) {
    let start = (data_offset / BLOCK).saturating_add(number).saturating_mul(BLOCK);
    let end = start.saturating_add(BLOCK);
    (if start < data_offset { data_offset } else { start }, if end > file_bytes { file_bytes } else { end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_each_other_from_the_first_byte_to_the_last() {
        for (data_offset, file_bytes) in [(PAGE, PAGE), (PAGE, 2 * PAGE), (BLOCK, 3 * BLOCK), (3 * PAGE, 5 * BLOCK + PAGE)] {
            let mut at = data_offset;
            for number in 0..block_count(data_offset, file_bytes) {
                let (start, end) = block_of(data_offset, file_bytes, number);
                assert!(start == at && end > start && end - start <= BLOCK, "block {number}");
                at = end;
            }
            assert_eq!(at, file_bytes);
        }
    }
}
