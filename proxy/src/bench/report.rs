//! Figures, and how they look.

use super::Poll;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "test", rename_all = "snake_case")]
pub enum Figure {
    /// One way: half the time there and back.
    Latency {
        bytes: u32,
        messages: u32,
        p50_us: f64,
        p99_us: f64,
    },
    Rate {
        bytes: u32,
        messages: u32,
        messages_per_second: f64,
        mbit_per_second: f64,
    },
    Lane {
        bytes: u32,
        pieces: u32,
        pieces_per_second: f64,
        mbit_per_second: f64,
    },
}

impl Figure {
    pub(super) fn latency(bytes: u32, mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |part: usize| {
            let index = (times.len() * part / 100).min(times.len().saturating_sub(1));
            times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6 / 2.0)
        };
        let messages = u32::try_from(times.len()).unwrap_or(u32::MAX);
        Self::Latency { bytes, messages, p50_us: at(50), p99_us: at(99) }
    }

    pub(super) fn rate(bytes: u32, messages: u32, took: Duration) -> Self {
        let messages_per_second = f64::from(messages) / took.as_secs_f64();
        let mbit_per_second = messages_per_second * f64::from(bytes) * 8e-6;
        Self::Rate { bytes, messages, messages_per_second, mbit_per_second }
    }

    pub(super) fn lane(bytes: u32, pieces: u32, took: Duration) -> Self {
        let pieces_per_second = f64::from(pieces) / took.as_secs_f64();
        let mbit_per_second = pieces_per_second * f64::from(bytes) * 8e-6;
        Self::Lane { bytes, pieces, pieces_per_second, mbit_per_second }
    }

    #[cfg(test)]
    pub(super) fn is_sound(&self) -> bool {
        match *self {
            Self::Latency { p50_us, p99_us, .. } => p50_us > 0.0 && p99_us >= p50_us,
            Self::Rate { messages_per_second: figure, .. }
            | Self::Lane { pieces_per_second: figure, .. } => figure > 0.0 && figure.is_finite(),
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Latency { bytes, p50_us, p99_us, .. } => {
                write!(f, "latency {bytes:>9} {p50_us:>14.2} µs p50 {p99_us:>14.2} µs p99")
            }
            Self::Rate { bytes, messages_per_second, mbit_per_second, .. } => write!(
                f,
                "rate    {bytes:>9} {messages_per_second:>11.0} messages/s {mbit_per_second:>9.1} Mbit/s"
            ),
            Self::Lane { bytes, pieces_per_second, mbit_per_second, .. } => write!(
                f,
                "lane    {bytes:>9} {pieces_per_second:>13.0} pieces/s {mbit_per_second:>9.1} Mbit/s"
            ),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub fabric: &'static str,
    pub poll: Poll,
    /// Receive buffers of the end that connected.
    pub credits: u32,
    pub figures: Vec<Figure>,
}

impl Report {
    pub(super) fn new(
        fabric: &'static str,
        poll: Poll,
        credits: u32,
        figures: Vec<Figure>,
    ) -> Self {
        Self { fabric, poll, credits, figures }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waits = match self.poll {
            Poll::Off => "sleeps",
            Poll::Always => "polls",
        };
        writeln!(f, "fabric {}, {waits}, {} receive buffers", self.fabric, self.credits)?;
        writeln!(f, "test        bytes")?;
        self.figures.iter().try_for_each(|figure| writeln!(f, "{figure}"))
    }
}
