//! The lane's settings.

use std::time::Duration;

/// Settings of one lane; both ends may differ.
#[derive(Debug, Clone)]
pub struct LaneConfig {
    /// Largest message, header included. The smaller of both ends' counts.
    pub message_bytes_max: u32,
    /// DATA up to this size is copied into the head of the message instead of being referred to.
    pub inline_bytes_max: u32,
    /// Receive buffers that the caller posts on each new link, before it says `link_up`.
    pub credits: u32,
    /// Messages sent and not acknowledged; beyond it the lane waits.
    pub unacked_messages_max: u32,
    pub window_initial_bytes: u32,
    pub window_max_bytes: u32,
    /// Bytes of one stream that `send` takes before they are in a message.
    pub send_queue_bytes_max: u32,
    /// What one stream may send before it is the next one's turn.
    pub quantum_bytes: u32,
    pub streams_max: u32,
    /// A stream that the far side has neither opened nor refused by then is refused.
    pub open_timeout: Duration,
    /// How long the lane keeps its streams without a link.
    pub resume_timeout: Duration,
    /// Silence after which the peer is asked for a sign of life.
    pub keepalive_interval: Duration,
    /// Silence after which the link counts as dead.
    pub keepalive_timeout: Duration,
}

impl Default for LaneConfig {
    fn default() -> Self {
        Self {
            message_bytes_max: 64 << 10,
            inline_bytes_max: 1024,
            credits: 64,
            unacked_messages_max: 256,
            window_initial_bytes: 16 << 10,
            window_max_bytes: 4 << 20,
            send_queue_bytes_max: 128 << 10,
            quantum_bytes: 16 << 10,
            streams_max: 65_536,
            open_timeout: Duration::from_secs(10),
            resume_timeout: Duration::from_secs(30),
            keepalive_interval: Duration::from_secs(1),
            keepalive_timeout: Duration::from_secs(5),
        }
    }
}
