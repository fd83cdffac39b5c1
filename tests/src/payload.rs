//! Random-looking payloads of any length that can be made and checked at any offset, so that a
//! gigabyte needs no gigabyte, and a fault is told with its place.

use std::io::{Read, Write};

/// An endless reproducible byte sequence.
#[derive(Debug, Clone, Copy)]
pub struct Pattern {
    seed: u64,
}

const WORD: usize = 8;
const CHUNK: usize = 256 << 10;

impl Pattern {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The sequence's bytes from `offset` on.
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) {
        let mut at = offset;
        let mut rest = buffer;
        let lead = usize::try_from(at % WORD as u64).unwrap_or(0);
        if lead != 0 {
            let word = self.word(at / WORD as u64);
            let take = rest.len().min(WORD - lead);
            let (head, tail) = rest.split_at_mut(take);
            head.copy_from_slice(&word[lead..lead + take]);
            rest = tail;
            at += take as u64;
        }
        for (index, chunk) in (at / WORD as u64..).zip(rest.chunks_mut(WORD)) {
            chunk.copy_from_slice(&self.word(index)[..chunk.len()]);
        }
    }

    fn word(&self, index: u64) -> [u8; WORD] {
        // splitmix64, addressed by index
        let mut z = self.seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)).to_le_bytes()
    }

    #[must_use]
    pub fn bytes(&self, length: usize) -> Vec<u8> {
        let mut all = vec![0; length];
        self.fill(0, &mut all);
        all
    }

    /// Writes the first `length` bytes in writes of `step` bytes.
    ///
    /// # Errors
    /// The writer's.
    pub fn write_to(&self, to: &mut impl Write, length: u64, step: usize) -> std::io::Result<()> {
        let mut buffer = vec![0; step.max(1)];
        let mut at = 0;
        while at < length {
            let left = usize::try_from(length - at).unwrap_or(usize::MAX).min(buffer.len());
            self.fill(at, &mut buffer[..left]);
            to.write_all(&buffer[..left])?;
            at += left as u64;
        }
        Ok(())
    }

    /// Reads to the end and compares every byte; returns how many there were.
    ///
    /// # Errors
    /// The reader's.
    ///
    /// # Panics
    /// At the first byte that differs.
    pub fn check_to_end(&self, from: &mut impl Read) -> std::io::Result<u64> {
        let mut got = vec![0; CHUNK];
        let mut want = vec![0; CHUNK];
        let mut at = 0;
        loop {
            let n = match from.read(&mut got) {
                Ok(0) => return Ok(at),
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            self.compare(at, &got[..n], &mut want[..n]);
            at += n as u64;
        }
    }

    /// Reads exactly `length` bytes and compares them.
    ///
    /// # Errors
    /// The reader's.
    ///
    /// # Panics
    /// At the first byte that differs.
    pub fn check_exact(&self, from: &mut impl Read, length: u64) -> std::io::Result<()> {
        let mut got = vec![0; CHUNK];
        let mut want = vec![0; CHUNK];
        let mut at = 0;
        while at < length {
            let n = usize::try_from(length - at).unwrap_or(usize::MAX).min(CHUNK);
            from.read_exact(&mut got[..n])?;
            self.compare(at, &got[..n], &mut want[..n]);
            at += n as u64;
        }
        Ok(())
    }

    fn compare(&self, at: u64, got: &[u8], want: &mut [u8]) {
        self.fill(at, want);
        if got != want {
            let wrong = got.iter().zip(want.iter()).position(|(g, w)| g != w).unwrap_or(0);
            panic!(
                "byte {} is {:#04x}, sent was {:#04x}",
                at + wrong as u64,
                got[wrong],
                want[wrong]
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[test]
    fn the_same_bytes_at_any_offset() {
        let pattern = Pattern::new(7);
        let all = pattern.bytes(100);
        for from in 0..60 {
            for length in 0..40 {
                let mut part = vec![0; length];
                pattern.fill(from as u64, &mut part);
                assert_eq!(part, all[from..from + length], "{from} {length}");
            }
        }
    }
}
