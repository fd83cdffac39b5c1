//! The report of a run in Markdown: machine, one table of what matters, then everything.

use super::plot::size;
use super::record::{Run, Subject, Summary};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The table for people in a hurry: job, size, metric.
const HEADLINE: [(&str, Option<u32>, &str); 14] = [
    ("ping-pong", Some(64), "p50"),
    ("ping-pong", Some(64), "p99"),
    ("ping-pong", Some(16 << 10), "p50"),
    ("iperf3, 1 stream", None, "throughput"),
    ("iperf3, 8 streams", None, "throughput"),
    ("iperf3, 1 stream", None, "CPU per GB"),
    ("iperf3, 8 streams", None, "CPU per GB"),
    ("nginx, keep-alive", Some(1 << 10), "rate"),
    ("nginx, connection per request", None, "rate"),
    ("redis GET, 50 clients", None, "rate"),
    ("PostgreSQL, select-only, 8 clients", None, "rate"),
    ("64 streams of 64 B messages", None, "rate"),
    ("ping-pong beside 8 bulk streams", None, "p99"),
    ("8,000 idle connections", None, "memory of the process that takes most"),
];

type Summaries = BTreeMap<(Subject, String), Summary>;

/// The whole report. `plots`: files beside it and what they show.
#[must_use]
pub fn write(run: &Run, plots: &[(String, String)], command: &str) -> String {
    let summaries = run.summaries();
    let mut text = String::from("# What rdmesh gains and costs\n\n");
    let machine = &run.machine;
    let _ = writeln!(
        text,
        "Made by `{command}`: {} round{}, {} s for each measurement, all paths interleaved in one \
         run. Medians; rounds in which others used the machine count only where no other is left. \
         In brackets: the ratio to `direct`.\n",
        run.rounds,
        if run.rounds == 1 { "" } else { "s" },
        run.seconds
    );
    let _ = writeln!(
        text,
        "{}, {} CPUs, {} MiB, Linux {}, load {:.1} at the start. {}.\n",
        machine.cpu,
        machine.cpus,
        machine.memory_mib,
        machine.kernel,
        machine.load,
        machine.versions.iter().map(|(a, b)| format!("{a} {b}")).collect::<Vec<_>>().join(", ")
    );
    text.push_str(PATHS);
    text.push_str("## In short\n\n");
    text.push_str(&headline(run));
    for (file, title) in plots {
        let _ = writeln!(text, "\n![{title}]({file})");
    }
    text.push_str("\n## Everything\n");
    let mut jobs: Vec<&str> = Vec::new();
    for figure in &run.figures {
        if !jobs.contains(&figure.job.as_str()) {
            jobs.push(&figure.job);
        }
    }
    for job in jobs {
        let subjects = subjects(run, |subject| subject.0 == job);
        let _ = writeln!(text, "\n### {job}\n");
        text.push_str(&table(run, &summaries, &subjects));
    }
    text
}

const PATHS: &str = "\
Paths: `direct` kernel TCP, routed; `vxlan` the same over a VXLAN device; `rdmesh` and `rdmesh-tls` \
the `tcp` fabric without and with TLS 1.3 between the nodes, in pods whose sysctls let capture route; \
`rdmesh-redirect` the first in pods without them; `relay` a pair of relays that read and \
write, a thread for each direction and a TCP connection for each stream; `haproxy`, `haproxy-tls` \
and `nginx` pairs of these in the same places, which the client addresses itself, without redirect; \
`direct-same-node` and `rdmesh-same-node` with both pods on one node, `splice-same-node` one relay \
between them that splices.\n\n";

/// The rows for people in a hurry, as a Markdown table.
#[must_use]
pub fn headline(run: &Run) -> String {
    let wanted = |subject: &Subject| {
        HEADLINE.iter().position(|(job, bytes, metric)| {
            subject.0 == *job && subject.1 == *bytes && subject.2 == *metric
        })
    };
    let mut subjects = subjects(run, |subject| wanted(subject).is_some());
    subjects.sort_by_key(wanted);
    table(run, &run.summaries(), &subjects)
}

/// In the order in which they were measured.
fn subjects(run: &Run, wanted: impl Fn(&Subject) -> bool) -> Vec<Subject> {
    let mut all: Vec<Subject> = Vec::new();
    for figure in &run.figures {
        let subject = (figure.job.clone(), figure.bytes, figure.metric.clone());
        if wanted(&subject) && !all.contains(&subject) {
            all.push(subject);
        }
    }
    all
}

fn table(run: &Run, summaries: &Summaries, subjects: &[Subject]) -> String {
    let at = |subject: &Subject, path: &String| summaries.get(&(subject.clone(), path.clone()));
    let paths: Vec<&String> = run
        .paths
        .iter()
        .filter(|path| subjects.iter().any(|subject| at(subject, path).is_some()))
        .collect();
    let mut text = String::from("| | |");
    for path in &paths {
        let _ = write!(text, " {path} |");
    }
    text.push_str("\n| --- | --- |");
    text.push_str(&" --- |".repeat(paths.len()));
    text.push('\n');
    for subject in subjects {
        let unit = run.example(subject).map_or("", |figure| figure.unit.as_str());
        let _ = write!(text, "| {} | {unit} |", title(subject));
        let base = at(subject, &"direct".to_owned()).map(|summary| summary.median);
        for path in &paths {
            let Some(found) = at(subject, path) else {
                text.push_str(" |");
                continue;
            };
            let ratio = base
                .filter(|base| *base > 0.0 && path.as_str() != "direct")
                .map_or_else(String::new, |base| format!(" ({:.2})", found.median / base));
            let _ = write!(text, " {}{ratio} |", number(found.median));
        }
        text.push('\n');
    }
    text
}

fn title((job, bytes, metric): &Subject) -> String {
    match bytes {
        Some(bytes) => format!("{job} {}, {metric}", size(f64::from(*bytes))),
        None => format!("{job}, {metric}"),
    }
}

/// Three digits, with commas.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => {
            let digits = format!("{value:.0}");
            let mut grouped = String::new();
            for (index, digit) in digits.chars().enumerate() {
                if index > 0 && (digits.len() - index) % 3 == 0 {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            grouped
        }
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Puts `table` between the marks of a document.
///
/// # Errors
/// When the document has no such marks.
pub fn replace_between(document: &str, mark: &str, table: &str) -> anyhow::Result<String> {
    let (begin, end) = (format!("<!-- {mark} begin -->"), format!("<!-- {mark} end -->"));
    let parts = document
        .split_once(&begin)
        .and_then(|(head, rest)| rest.split_once(&end).map(|(_, tail)| (head, tail)));
    let (head, tail) = anyhow::Context::context(parts, format!("no marks {begin} … {end}"))?;
    Ok(format!("{head}{begin}\n{table}{end}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::run;
    use super::*;

    #[test]
    fn a_table_has_medians_and_ratios() {
        let run = run(&[("direct", "p50", &[10.0], true), ("rdmesh", "p50", &[15.0], true)]);
        let text = headline(&run);
        assert!(text.contains("| ping-pong 64 B, p50 | µs | 10.0 | 15.0 (1.50) |"), "{text}");
        assert!(write(&run, &[], "make bench").contains("### ping-pong"));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(number(1_234_567.0), "1,234,567");
        assert_eq!(number(123.4), "123");
        assert_eq!(number(1.234), "1.23");
    }

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let document = "a\n<!-- x begin -->\nold\n<!-- x end -->\nb\n";
        let changed = replace_between(document, "x", "new\n").unwrap();
        assert_eq!(changed, "a\n<!-- x begin -->\nnew\n<!-- x end -->\nb\n");
        assert!(replace_between(document, "y", "").is_err());
    }
}
