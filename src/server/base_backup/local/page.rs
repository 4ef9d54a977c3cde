//! The checksum of a data page (`src/include/storage/checksum_impl.h`, the same in PostgreSQL 14 to 18), and for which
//! pages it counts (`sendFile` in `basebackup.c`).

use crate::pg::Lsn;
use crate::pg::fields::{u16_at, u32_at};

/// `BLCKSZ`; the method refuses servers that were built with another.
pub(super) const PAGE_BYTES: usize = 8192;
/// Where `pd_checksum` and `pd_upper` are in a page (`PageHeaderData`, `src/include/storage/bufpage.h`).
const CHECKSUM_AT: usize = 8;
const UPPER_AT: usize = 14;
/// The page is summed in this many columns.
const COLUMNS: usize = 32;
const ROW_BYTES: usize = 4 * COLUMNS;
const PRIME: u32 = 16_777_619;
/// `checksumBaseOffsets`.
const START: [u32; COLUMNS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// Whether a page of [`PAGE_BYTES`] is damaged: its checksum is wrong, it is not a new page, and nothing was written to
/// it since the backup began. Replay repairs a page that was written since, which may be half-written here.
pub(super) fn is_damaged(page: &[u8], block: u32, backup_start: Lsn) -> bool {
    let is_new = u16_at(page, UPPER_AT).unwrap_or_default() == 0;
    !is_new && lsn(page) < backup_start && u16_at(page, CHECKSUM_AT) != Some(checksum(page, block))
}

/// `pd_lsn`: two halves, the upper one first.
fn lsn(page: &[u8]) -> Lsn {
    let half = |at| u64::from(u32_at(page, at).unwrap_or_default());
    Lsn(half(0) << 32 | half(4))
}

/// `pg_checksum_page`: of the page without its checksum, and of its block number.
fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = START;
    let (first, rest) = page.split_at(ROW_BYTES.min(page.len()));
    let mut without_checksum = first.to_vec();
    without_checksum
        .iter_mut()
        .skip(CHECKSUM_AT)
        .take(2)
        .for_each(|byte| *byte = 0);
    mix(&mut sums, &without_checksum);
    rest.chunks_exact(ROW_BYTES).for_each(|row| mix(&mut sums, row));
    for _ in 0..2 {
        mix(&mut sums, &[0; ROW_BYTES]);
    }
    let sum = sums.iter().fold(0, |all, sum| all ^ sum) ^ block;
    // At most 65535.
    (sum % 65_535 + 1) as u16
}

fn mix(sums: &mut [u32; COLUMNS], row: &[u8]) {
    for (sum, word) in sums.iter_mut().zip(row.as_chunks::<4>().0) {
        let mixed = *sum ^ u32::from_le_bytes(*word);
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page as PostgreSQL lays it out, written at this position, with its checksum for block 7.
    fn page(written: u64) -> Vec<u8> {
        let mut page = vec![0x5A; PAGE_BYTES];
        page[..4].copy_from_slice(&((written >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(written as u32).to_le_bytes());
        let sum = checksum(&page, 7);
        page[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum.to_le_bytes());
        page
    }

    #[test]
    fn damage_anywhere_in_a_page_and_a_page_elsewhere_are_noticed() {
        let start = Lsn(0x2_0000_0000);
        let good = page(0x1_0000_0000);
        assert!(!is_damaged(&good, 7, start));
        assert!(is_damaged(&good, 8, start), "another block's page");
        for at in [9, 20, 128, 4096, PAGE_BYTES - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(is_damaged(&bad, 7, start), "byte {at}");
        }
    }

    #[test]
    fn a_page_written_since_the_backup_began_and_a_new_page_are_no_damage() {
        let mut late = page(0x2_0000_0000);
        late[4096] ^= 1;
        assert!(!is_damaged(&late, 7, Lsn(0x2_0000_0000)));
        assert!(is_damaged(&late, 7, Lsn(0x2_0000_0001)));
        assert!(!is_damaged(&[0; PAGE_BYTES], 7, Lsn(u64::MAX)));
    }
}
