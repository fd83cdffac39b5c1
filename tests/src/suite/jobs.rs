//! What is run: the workloads of the study that rdmesh began with (Teivo, "Low-latency Networking in
//! Kubernetes", Aalto University 2023), and ours.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    PingPong,
    Throughput,
    Bulk {
        streams: u32,
        no_delay: bool,
        reverse: bool,
    },
    Fetch,
    /// A connection per request.
    Churn,
    Redis,
    Postgres,
    /// Many streams of small messages.
    Small,
    /// A ping-pong beside eight bulk streams.
    Mixed,
    Idle,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub name: String,
    /// Jobs of one family differ in size only.
    pub family: &'static str,
    pub bytes: Option<u32>,
    pub what: What,
}

/// sockperf's largest message.
const LARGEST: u32 = (1 << 20) - 1;
const SIZES: [u32; 10] = [1, 16, 64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, LARGEST];
const QUICK_SIZES: [u32; 3] = [64, 16 << 10, LARGEST];
pub const FILES: [u32; 5] = [1, 1 << 10, 16 << 10, 128 << 10, 1 << 20];
const QUICK_FILES: [u32; 1] = [1 << 10];

impl Job {
    fn new(family: &'static str, what: What) -> Self {
        Self { name: family.to_owned(), family, bytes: None, what }
    }

    fn sized(family: &'static str, what: What, bytes: u32) -> Self {
        Self { name: format!("{family} {bytes} B"), bytes: Some(bytes), ..Self::new(family, what) }
    }

    /// Whether a second round would tell nothing new: memory that was taken once is there.
    pub fn once(&self) -> bool {
        self.what == What::Idle
    }
}

pub fn all(quick: bool) -> Vec<Job> {
    let sizes: &[u32] = if quick { &QUICK_SIZES } else { &SIZES };
    let files: &[u32] = if quick { &QUICK_FILES } else { &FILES };
    let mut jobs: Vec<Job> = Vec::new();
    jobs.extend(sizes.iter().map(|n| Job::sized("ping-pong", What::PingPong, *n)));
    jobs.extend(sizes.iter().map(|n| Job::sized("throughput", What::Throughput, *n)));
    for (family, streams, no_delay, reverse) in BULK {
        if !quick || !(no_delay || reverse) {
            jobs.push(Job::new(family, What::Bulk { streams, no_delay, reverse }));
        }
    }
    jobs.extend(files.iter().map(|n| Job::sized("nginx, keep-alive", What::Fetch, *n)));
    jobs.push(Job::new("nginx, connection per request", What::Churn));
    jobs.push(Job::new("redis GET, 50 clients", What::Redis));
    jobs.push(Job::new("PostgreSQL, select-only, 8 clients", What::Postgres));
    jobs.push(Job::new("64 streams of 64 B messages", What::Small));
    jobs.push(Job::new("ping-pong beside 8 bulk streams", What::Mixed));
    if !quick {
        jobs.push(Job::new("8,000 idle connections", What::Idle));
    }
    jobs
}

const BULK: [(&str, u32, bool, bool); 8] = [
    ("iperf3, 1 stream", 1, false, false),
    ("iperf3, 8 streams", 8, false, false),
    ("iperf3, 1 stream, reverse", 1, false, true),
    ("iperf3, 8 streams, reverse", 8, false, true),
    ("iperf3, 1 stream, no-delay", 1, true, false),
    ("iperf3, 8 streams, no-delay", 8, true, false),
    ("iperf3, 1 stream, no-delay, reverse", 1, true, true),
    ("iperf3, 8 streams, no-delay, reverse", 8, true, true),
];
