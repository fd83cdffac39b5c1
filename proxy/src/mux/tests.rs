use super::Payload;
use bytes::Bytes;

impl Payload for Bytes {
    fn split_to(&mut self, n: usize) -> Self {
        let n = n.min(self.len());
        Bytes::split_to(self, n)
    }
}
