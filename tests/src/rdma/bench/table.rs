//! Medians and ratios, against their targets, as a table and as JSON.

use super::figures::Figures;
use super::{Wanted, fabric, smc, talks};
use serde_json::{Value, json};

/// What a ratio is to be.
#[derive(Debug, Clone, Copy)]
enum Target {
    None,
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    fn reached(self, ratio: f64) -> Option<bool> {
        match self {
            Self::None => None,
            Self::AtMost(limit) => Some(ratio <= limit),
            Self::AtLeast(limit) => Some(ratio >= limit),
        }
    }

    fn show(self, ratio: f64) -> String {
        let (sign, limit) = match self {
            Self::None => return String::new(),
            Self::AtMost(limit) => ("<=", limit),
            Self::AtLeast(limit) => (">=", limit),
        };
        let verdict = if self.reached(ratio) == Some(true) { "reached" } else { "NOT reached" };
        format!("[{sign} {limit:.2}: {verdict}]")
    }
}

/// Ours against another.
struct Row {
    name: String,
    unit: &'static str,
    ours: String,
    other: String,
    target: Target,
}

fn row(name: String, unit: &'static str, ours: String, other: String, target: Target) -> Row {
    Row { name, unit, ours, other, target }
}

fn fabric_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for size in fabric::SIZES {
        let target = match size {
            64 => Target::AtMost(1.3),
            65_536 => Target::AtMost(1.1),
            _ => Target::None,
        };
        let (ours, other) = (format!("link latency {size}"), format!("perftest latency {size}"));
        rows.push(row(format!("message ping-pong, {size} B, p50"), "µs", ours, other, target));
    }
    for size in fabric::SIZES {
        let (ours, other) = (format!("link rate {size}"), format!("perftest rate {size}"));
        rows.push(row(format!("messages one way, {size} B"), "1/s", ours, other, Target::None));
    }
    rows.push(row(
        "the same, 64 B; perftest -l 32".to_owned(),
        "1/s",
        "link rate 64".to_owned(),
        "perftest list 64".to_owned(),
        Target::None,
    ));
    rows.push(row(
        "pieces of 64 B on one lane".to_owned(),
        "1/s",
        "lane rate 64".to_owned(),
        "perftest rate 64".to_owned(),
        Target::AtLeast(3.0),
    ));
    rows
}

fn program_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (other, name) in [("tcp", "kernel TCP"), ("rsockets", "rsockets"), ("rstream", "rstream")] {
        for size in talks::SIZES {
            let theirs = match other {
                "rstream" => format!("rstream {size}"),
                _ => format!("{other} sockperf {size}"),
            };
            let name = format!("sockperf {size} B, p50; {name}");
            rows.push(row(name, "µs", format!("rdmesh sockperf {size}"), theirs, Target::None));
        }
        let (theirs, target) = match other {
            "tcp" => ("tcp iperf3", Target::None),
            "rsockets" => ("rsockets iperf3", Target::AtLeast(1.0)),
            _ => ("rstream bulk", Target::AtLeast(1.0)),
        };
        let name = format!("iperf3, 1 stream; {name}");
        rows.push(row(name, "Mbit/s", "rdmesh iperf3".to_owned(), theirs.to_owned(), target));
    }
    rows
}

/// The same program on both paths.
fn talk_rows(ours: &str, other: &str, below: Target, above: Target) -> Vec<Row> {
    let mut rows = Vec::new();
    for size in talks::SIZES {
        let (ours, other) =
            (format!("{ours} ping-pong {size}"), format!("{other} ping-pong {size}"));
        let target = if size == 64 { below } else { Target::None };
        rows.push(row(format!("ping-pong, {size} B, p50 one way"), "µs", ours, other, target));
    }
    let (ours, other) = (format!("{ours} bulk"), format!("{other} bulk"));
    rows.push(row("one stream".to_owned(), "Mbit/s", ours, other, above));
    rows
}

/// Against relays that are joined by rsockets.
fn floor_rows() -> Vec<Row> {
    talk_rows("rdmesh", talks::RELAYS, Target::None, Target::None)
}

/// Title, the two columns, rows.
fn smc_tables() -> [(&'static str, &'static str, &'static str, Vec<Row>); 4] {
    let none = Target::None;
    let large = |ours: &str, other: &str, target| {
        let name = format!("the same; {}", smc::LARGE);
        row(name, "Mbit/s", format!("{ours} bulk"), format!("{other} bulk"), target)
    };
    let mut tables = [
        (
            "application to application",
            "rdmesh",
            "SMC-R",
            talk_rows("rdmesh", "SMC-R", Target::AtMost(1.0), Target::AtLeast(1.0)),
        ),
        ("the same", "rdmesh", "relays, SMC-R", talk_rows("rdmesh", talks::RELAYS, none, none)),
        ("between pods", "rdmesh", "kernel TCP", talk_rows("rdmesh", "TCP of pods", none, none)),
        ("between nodes", "SMC-R", "kernel TCP", talk_rows("SMC-R", "TCP of nodes", none, none)),
    ];
    tables[0].3.push(large("rdmesh", smc::LARGE, Target::AtLeast(1.0)));
    tables[3].3.push(large(smc::LARGE, "TCP of nodes", none));
    tables
}

pub(super) fn print(figures: &Figures, wanted: Wanted, machines: &str) {
    println!("medians of {} rounds; {machines}\n", wanted.rounds);
    if wanted.fabric {
        print_rows(
            "the fabric alone, both sleep",
            "bench-link",
            "perftest",
            figures,
            &fabric_rows(),
        );
    }
    if wanted.programs {
        print_rows("application to application", "rdmesh", "other", figures, &program_rows());
        print_rows("the same", "rdmesh", "relays, rsock", figures, &floor_rows());
    }
    if wanted.smc {
        for (title, ours, other, rows) in smc_tables() {
            print_rows(title, ours, other, figures, &rows);
        }
        println!("{}", smc::PROOF);
    }
    for (name, why) in figures.missing() {
        println!("not measured: {name}: {why}");
    }
}

fn print_rows(title: &str, ours: &str, other: &str, figures: &Figures, rows: &[Row]) {
    println!("{title:<42} {:>6} {ours:>12} {other:>12} {:>7}", "unit", "ratio");
    for row in rows {
        let show =
            |name: &str| figures.median(name).map_or("-".into(), |value| format!("{value:.1}"));
        let (ours, other) = (show(&row.ours), show(&row.other));
        let (ratio, target) = match figures.ratio(&row.ours, &row.other) {
            Some(ratio) => (format!("{ratio:.2}"), row.target.show(ratio)),
            None => ("-".to_owned(), String::new()),
        };
        println!("{:<42} {:>6} {ours:>12} {other:>12} {ratio:>7} {target}", row.name, row.unit);
    }
    println!();
}

fn json_rows(figures: &Figures, rows: Vec<Row>) -> Vec<Value> {
    let value = |row: Row| {
        let ratio = figures.ratio(&row.ours, &row.other);
        json!({
            "name": row.name,
            "unit": row.unit,
            "ours": figures.median(&row.ours),
            "other": figures.median(&row.other),
            "ratio": ratio,
            "target": match row.target {
                Target::None => Value::Null,
                Target::AtMost(limit) => json!({ "at_most": limit }),
                Target::AtLeast(limit) => json!({ "at_least": limit }),
            },
            "reached": ratio.and_then(|ratio| row.target.reached(ratio)),
        })
    };
    rows.into_iter().map(value).collect()
}

pub(super) fn json(figures: &Figures, wanted: Wanted) -> Value {
    let rows = |rows| json_rows(figures, rows);
    let smc: Vec<Value> = smc_tables()
        .into_iter()
        .filter(|_| wanted.smc)
        .map(|(title, ours, other, all)| {
            json!({ "title": title, "ours": ours, "other": other, "rows": rows(all) })
        })
        .collect();
    json!({
        "rounds": wanted.rounds,
        "fabric": if wanted.fabric { rows(fabric_rows()) } else { Vec::new() },
        "programs": if wanted.programs { rows(program_rows()) } else { Vec::new() },
        "floor": if wanted.programs { rows(floor_rows()) } else { Vec::new() },
        "smc": smc,
        "not_measured": figures.missing(),
        "all": figures.all(),
    })
}
