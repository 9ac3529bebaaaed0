//! XXH64 with seed 0, the checksum of headers, tables and page data: fast, well distributed, not cryptographic.
//!
//! It finds damage, not forgery; an image is trusted by who owns its file.

const P1: u64 = 0x9e37_79b1_85eb_ca87;
const P2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const P3: u64 = 0x1656_67b1_9e37_79f9;
const P4: u64 = 0x85eb_ca77_c2b2_ae63;
const P5: u64 = 0x27d4_eb2f_1656_67c5;

/// A checksum in the making. Every part but the last must be a multiple of 32 bytes long.
#[derive(Clone, Copy, Debug)]
pub struct Xxh64 {
    lanes: [u64; 4],
    total: u64,
}

impl Default for Xxh64 {
    fn default() -> Self {
        Self::new()
    }
}

impl Xxh64 {
    pub const fn new() -> Self {
        Self { lanes: [P1.wrapping_add(P2), P2, 0, 0_u64.wrapping_sub(P1)], total: 0 }
    }

    /// Takes in whole blocks of 32 bytes and returns the rest.
    #[inline]
    pub fn blocks<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (blocks, rest) = bytes.as_chunks::<32>();
        let [mut a, mut b, mut c, mut d] = self.lanes;
        for block in blocks {
            let [one, two, three, four] = words(block);
            a = round(a, one);
            b = round(b, two);
            c = round(c, three);
            d = round(d, four);
        }
        self.lanes = [a, b, c, d];
        self.total = self.total.wrapping_add(bytes.len() as u64 - rest.len() as u64);
        rest
    }

    /// Takes in `bytes`, shorter than 32 if the last call, and gives the sum.
    pub fn finish(mut self, bytes: &[u8]) -> u64 {
        let long = self.total + bytes.len() as u64 >= 32;
        let rest = self.blocks(bytes);
        let total = self.total.wrapping_add(rest.len() as u64);
        let mut hash = if long {
            let [a, b, c, d] = self.lanes;
            let start =
                a.rotate_left(1).wrapping_add(b.rotate_left(7)).wrapping_add(c.rotate_left(12)).wrapping_add(d.rotate_left(18));
            [a, b, c, d].into_iter().fold(start, |hash, lane| (hash ^ round(0, lane)).wrapping_mul(P1).wrapping_add(P4))
        } else {
            P5
        };
        hash = hash.wrapping_add(total);
        let (eights, rest) = rest.as_chunks::<8>();
        for eight in eights {
            hash = (hash ^ round(0, u64::from_le_bytes(*eight))).rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
        }
        let (fours, rest) = rest.as_chunks::<4>();
        for four in fours {
            hash ^= u64::from(u32::from_le_bytes(*four)).wrapping_mul(P1);
            hash = hash.rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
        }
        for byte in rest {
            hash = (hash ^ u64::from(*byte).wrapping_mul(P5)).rotate_left(11).wrapping_mul(P1);
        }
        hash ^= hash >> 33;
        hash = hash.wrapping_mul(P2);
        hash ^= hash >> 29;
        hash = hash.wrapping_mul(P3);
        hash ^ (hash >> 32)
    }
}

/// The checksum of `bytes`.
pub fn xxh64(bytes: &[u8]) -> u64 {
    Xxh64::new().finish(bytes)
}

#[inline]
fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
}

#[inline]
fn words(block: &[u8; 32]) -> [u64; 4] {
    // Taken apart by pattern: the stub must not contain a reachable panic, and this compiles to four loads.
    let [a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7, rest @ ..] = *block;
    let [c0, c1, c2, c3, c4, c5, c6, c7, d0, d1, d2, d3, d4, d5, d6, d7] = rest;
    [
        u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
        u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]),
        u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
        u64::from_le_bytes([d0, d1, d2, d3, d4, d5, d6, d7]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_sums() {
        assert_eq!(xxh64(b""), 0xef46_db37_51d8_e999);
        assert_eq!(xxh64(b"a"), 0xd24e_c4f1_a98c_6e5b);
        assert_eq!(xxh64(b"abc"), 0x44bc_2cf5_ad77_0999);
        assert_eq!(xxh64(b"Nobody inspects the spammish repetition"), 0xfbce_a83c_8a37_8bf1);
    }

    #[test]
    fn parts_sum_like_the_whole() {
        let bytes: Vec<u8> = (0..1000_u32).map(|at| (at * 7) as u8).collect();
        let mut parts = Xxh64::new();
        assert!(parts.blocks(&bytes[..320]).is_empty());
        assert_eq!(parts.finish(&bytes[320..]), xxh64(&bytes));
    }
}
