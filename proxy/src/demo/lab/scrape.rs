//! Reads the admin endpoints of the processes in a lab.
//!
//! What it does not do: speak more HTTP than one GET per connection.

use super::netns::Netns;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);

/// The body of a GET from inside the namespace; an error unless the status is 200.
pub fn get(netns: &Netns, address: SocketAddr, path: &str) -> Result<String> {
    let stream = netns
        .run(|| TcpStream::connect_timeout(&address, TIMEOUT))
        .with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut stream = stream;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer without a body")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        bail!("{address}{path} answers {status}: {}", body.trim());
    }
    Ok(body.to_owned())
}

/// One scrape of a `/metrics` endpoint.
#[derive(Debug, Default, Clone)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    pub fn fetch(netns: &Netns, address: SocketAddr) -> Result<Self> {
        Ok(Self::parse(&get(netns, address, "/metrics")?))
    }

    pub fn parse(text: &str) -> Self {
        let samples = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
            .filter_map(parse_line)
            .collect();
        Self { samples }
    }

    /// The sum over all series of `name` that carry the given labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.samples
            .iter()
            .filter(|s| s.name == name)
            .filter(|s| labels.iter().all(|(k, v)| s.labels.get(*k).is_some_and(|have| have == v)))
            .map(|s| s.value)
            .sum()
    }

    pub fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|s| s.name == name)
    }

    /// The series of `name` that are not 0 as text, for messages.
    pub fn show(&self, name: &str) -> String {
        let mut lines: Vec<String> = Vec::new();
        for s in self.samples.iter().filter(|s| s.name == name && s.value != 0.0) {
            lines.push(format!("{:?} {}", s.labels, s.value));
        }
        lines.join("; ")
    }
}

fn parse_line(line: &str) -> Option<Sample> {
    let (series, value) = line.trim().rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, labels)) = series.split_once('{') else {
        return Some(Sample { name: series.to_owned(), labels: BTreeMap::new(), value });
    };
    let labels = labels
        .trim_end_matches('}')
        .split("\",")
        .filter_map(|pair| pair.split_once("=\""))
        .map(|(k, v)| (k.trim().to_owned(), v.trim_end_matches('"').to_owned()))
        .collect();
    Some(Sample { name: name.to_owned(), labels, value })
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn sums_by_label() {
        let metrics = Metrics::parse(
            "# TYPE x counter\nx{a=\"1\",b=\"q, r\"} 2\nx{a=\"2\",b=\"s\"} 3.5\ny 7\n",
        );
        assert!((metrics.sum("x", &[]) - 5.5).abs() < 1e-9);
        assert!((metrics.sum("x", &[("b", "q, r")]) - 2.0).abs() < 1e-9);
        assert!((metrics.sum("y", &[]) - 7.0).abs() < 1e-9);
        assert!(metrics.has("y") && !metrics.has("z"));
    }
}
