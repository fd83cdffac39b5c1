//! The node proxy: peers, workers and what passes between them.

pub mod mailbox;
pub mod messages;
pub mod peers;
