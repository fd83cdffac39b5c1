//! Random numbers and changes of an input.
//!
//! What it does not do: learn; which inputs are kept is the driver's matter.

/// xorshift64*: small, fast, and the same everywhere for the same seed.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `limit`; 0 where there is nothing to choose from.
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next_u64() % limit).unwrap_or_default()
    }

    fn byte(&mut self) -> u8 {
        const INTERESTING: [u8; 12] =
            [0, 1, 2, 0x7f, 0x80, 0xff, b'\n', b' ', b':', b'-', b'[', b'*'];
        if self.below(2) == 0 {
            INTERESTING[self.below(12)]
        } else {
            self.next_u64().to_le_bytes()[7]
        }
    }

    fn word(&mut self, near: usize) -> u64 {
        let near = u64::try_from(near).unwrap_or(u64::MAX);
        let interesting = [0, 1, u64::MAX, 1 << 31, 1 << 32, 1 << 16, u64::from(u32::MAX), near];
        let word = interesting[self.below(interesting.len())];
        word.wrapping_add(u64::try_from(self.below(3)).unwrap_or_default()).wrapping_sub(1)
    }
}

/// Changes `input` in one to eight places; `other` lends it pieces.
#[must_use]
pub fn mutate(random: &mut Random, input: &[u8], other: &[u8], bytes_max: usize) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(8) {
        change(random, &mut bytes, other);
    }
    bytes.truncate(bytes_max);
    bytes
}

fn change(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    let length = bytes.len();
    let at = random.below(length);
    match random.below(10) {
        0 | 1 if length > 0 => bytes[at] ^= 1 << random.below(8),
        2 | 3 if length > 0 => bytes[at] = random.byte(),
        4 => {
            let width = [2, 4, 8][random.below(3)];
            let word = random.word(length).to_le_bytes();
            for (slot, byte) in bytes.iter_mut().skip(at).zip(&word[..width]) {
                *slot = *byte;
            }
        }
        5 => bytes.truncate(at),
        6 if length > 0 => {
            let end = at + random.below((length - at).min(64)) + 1;
            bytes.drain(at..end.min(length));
        }
        7 if length > 0 => {
            let end = (at + random.below(64) + 1).min(length);
            let piece = bytes[at..end].to_vec();
            let to = random.below(length);
            bytes.splice(to..to, piece);
        }
        8 if !other.is_empty() => {
            let from = random.below(other.len());
            let end = (from + random.below(128) + 1).min(other.len());
            bytes.splice(at..at, other[from..end].iter().copied());
        }
        _ => {
            let byte = random.byte();
            bytes.insert(at, byte);
        }
    }
}
