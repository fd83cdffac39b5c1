//! Measures a link by itself: two programs, one thread each, that do with [`Link`] what a worker
//! does (negotiate, post in batches, flush, receive, wait for the descriptor) and nothing else.
//!
//! What it does not do: authenticate or encrypt. The connection is one that the user has asked for,
//! it carries nothing but figures, and no node proxy takes part.
//!
//! [`Link`]: crate::fabric::Link

mod end;
mod lane;
mod link;
mod plan;
mod report;

pub use plan::{Plan, Poll, Test};
pub use report::{Figure, Report};

use crate::fabric::Broken;
use crate::mux::ProtocolError;
use end::End;
use rdmesh_config::Node;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// The other end answers within this time or is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}: {1}")]
    Address(SocketAddr, #[source] io::Error),
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("link: {0}")]
    Broken(#[from] Broken),
    #[error("what came is no message of this test: {0}")]
    Message(#[from] ProtocolError),
    #[error("nothing came from the other end for {} s", SILENCE_MAX.as_secs())]
    Silent,
    #[error("the plan: {0}")]
    Plan(String),
    #[error("the lane: {0}")]
    Lane(&'static str),
}

/// Waits for the other end at `address`, serves its plan once, and returns.
///
/// # Errors
/// When the address is not to be had, the plan makes no sense, or the link breaks amid it.
pub fn listen(address: SocketAddr, node: &Node) -> Result<(), Error> {
    let fault = |error| Error::Address(address, error);
    let listener = TcpListener::bind(address).map_err(fault)?;
    let (socket, _) = listener.accept().map_err(fault)?;
    drop(listener);
    let plan = plan::read(&socket)?;
    plan.check(node.limits.message_bytes_max)?;
    let mut end = End::new(socket, node, plan.poll)?;
    for test in &plan.tests {
        match *test {
            Test::Latency { bytes, messages } => link::answer_pings(&mut end, bytes, messages)?,
            Test::Rate { messages, .. } => link::take(&mut end, messages)?,
            Test::Lane { streams, .. } => lane::take(&mut end, node, streams)?,
        }
    }
    // What was posted last must arrive before the link goes: the other end closes first.
    loop {
        match end.turn() {
            Ok(()) => {}
            Err(Error::Broken(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Carries out `plan` with the end that listens at `address`.
///
/// # Errors
/// When there is none, the plan makes no sense, or the link breaks.
pub fn connect(address: SocketAddr, node: &Node, plan: &Plan) -> Result<Report, Error> {
    plan.check(node.limits.message_bytes_max)?;
    let fault = |error| Error::Address(address, error);
    let socket = TcpStream::connect_timeout(&address, SILENCE_MAX).map_err(fault)?;
    plan::write(&socket, plan)?;
    let mut end = End::new(socket, node, plan.poll)?;
    let mut figures = Vec::with_capacity(plan.tests.len());
    for test in &plan.tests {
        figures.push(match *test {
            Test::Latency { bytes, messages } => {
                let times = link::ping(&mut end, bytes, messages)?;
                Figure::latency(bytes, times)
            }
            Test::Rate { bytes, messages } => {
                let took = link::pour(&mut end, bytes, messages)?;
                Figure::rate(bytes, messages, took)
            }
            Test::Lane { bytes, pieces, streams } => {
                let took = lane::pour(&mut end, node, bytes, pieces, streams)?;
                Figure::lane(bytes, pieces, took)
            }
        });
    }
    Ok(Report::new(end.fabric(), plan.poll, end.credits(), figures))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdmesh_config::Fabric;

    fn node() -> Node {
        let mut node = Node { fabric: Fabric::Tcp, ..Node::default() };
        node.limits.slab_bytes = 4 << 20;
        node.limits.window_budget_bytes = 4 << 20;
        node
    }

    /// An address that nobody listens at yet.
    fn free_address() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    fn both(plan: &Plan) -> Report {
        let address = free_address();
        let far = std::thread::spawn(move || listen(address, &node()));
        let report = loop {
            match connect(address, &node(), plan) {
                Err(Error::Address(..)) => std::thread::yield_now(),
                other => break other.unwrap(),
            }
        };
        far.join().unwrap().unwrap();
        report
    }

    #[test]
    fn tests_of_the_link_follow_each_other_on_one_link() {
        for poll in [Poll::Off, Poll::Always] {
            let mut tests = Vec::new();
            for bytes in [41, 64, 1025, 64 << 10] {
                tests.push(Test::Latency { bytes, messages: 20 });
                tests.push(Test::Rate { bytes, messages: 300 });
            }
            tests.push(Test::Lane { bytes: 64, pieces: 50_000, streams: 16 });
            let report = both(&Plan { poll, tests: tests.clone() });
            assert_eq!(report.figures.len(), tests.len());
            assert_eq!(report.fabric, "tcp");
            assert!(report.figures.iter().all(Figure::is_sound), "{report:?}");
        }
    }

    #[test]
    fn a_plan_beyond_the_limits_is_refused() {
        let refused = [
            vec![],
            vec![Test::Latency { bytes: 40, messages: 1 }],
            vec![Test::Rate { bytes: (64 << 10) + 1, messages: 1 }],
            vec![Test::Rate { bytes: 64, messages: 0 }],
            vec![
                Test::Lane { bytes: 64, pieces: 1, streams: 1 },
                Test::Rate { bytes: 64, messages: 1 },
            ],
        ];
        for tests in refused {
            let plan = Plan { poll: Poll::Off, tests };
            assert!(plan.check(64 << 10).is_err(), "{plan:?}");
        }
    }
}
