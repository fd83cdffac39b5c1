//! What got worse since an older run, beyond what the two runs scatter by themselves.
//!
//! Machines differ in speed from day to day: where both runs have the path `direct`, the figures are
//! taken as ratios to it.

use super::record::{Run, Subject, Summary};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Changes below this are never told.
const CHANGE_MIN: f64 = 0.05;
/// What two runs of one round each are taken to scatter.
const SCATTER_UNKNOWN: f64 = 0.15;
const BASE: &str = "direct";

#[derive(Debug, PartialEq)]
pub struct Change {
    pub path: String,
    pub subject: Subject,
    /// New to old; above 1 is better, whichever way the figure goes.
    pub gain: f64,
    pub noise: f64,
}

/// Every change that is more than noise, the worst first.
#[must_use]
pub fn changes(old: &Run, new: &Run) -> Vec<Change> {
    let (before, after) = (old.summaries(), new.summaries());
    let mut found = Vec::new();
    for ((subject, path), now) in &after {
        let key = (subject.clone(), path.clone());
        let (Some(was), Some(example)) = (before.get(&key), new.example(subject)) else { continue };
        if path == BASE {
            continue;
        }
        let bases = base(&before, subject).zip(base(&after, subject));
        let (old_base, new_base) = bases.map_or((1.0, 1.0), |(old, new)| (old.median, new.median));
        let ratio = (now.median / new_base) / (was.median / old_base);
        let gain = if example.lower_is_better { 1.0 / ratio } else { ratio };
        let base_noise = bases.map_or(0.0, |(old, new)| scatter(old, new));
        let noise = (scatter(was, now) + base_noise).max(CHANGE_MIN);
        if gain.is_finite() && (gain - 1.0).abs() > noise {
            found.push(Change { path: path.clone(), subject: subject.clone(), gain, noise });
        }
    }
    found.sort_by(|a, b| a.gain.total_cmp(&b.gain));
    found
}

/// Of both together. A run of one round scatters as the other does, its only value by all that lies
/// between lowest and highest, which is twice a scatter.
fn scatter(old: &Summary, new: &Summary) -> f64 {
    match (old.rounds, new.rounds) {
        (1, 1) => SCATTER_UNKNOWN,
        (1, _) => 3.0 * new.scatter,
        (_, 1) => 3.0 * old.scatter,
        _ => old.scatter + new.scatter,
    }
}

fn base<'a>(
    summaries: &'a BTreeMap<(Subject, String), Summary>,
    subject: &Subject,
) -> Option<&'a Summary> {
    summaries.get(&(subject.clone(), BASE.to_owned())).filter(|summary| summary.median != 0.0)
}

/// For people. The second value says whether anything of rdmesh got worse.
#[must_use]
pub fn show(changes: &[Change]) -> (String, bool) {
    let mut text = String::new();
    for change in changes {
        let (job, bytes, metric) = &change.subject;
        let bytes = bytes.map_or_else(String::new, |bytes| format!(" {bytes} B"));
        let word = if change.gain < 1.0 { "WORSE " } else { "better" };
        let _ = writeln!(
            text,
            "{word} {:>5.2} x (noise {:.0} %)  {}: {job}{bytes}, {metric}",
            change.gain,
            change.noise * 100.0,
            change.path
        );
    }
    if changes.is_empty() {
        text.push_str("nothing changed beyond the noise\n");
    }
    let worse = changes.iter().any(|c| c.gain < 1.0 && c.path.starts_with("rdmesh"));
    (text, worse)
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::run;
    use super::*;

    #[test]
    fn only_what_is_beyond_noise_is_told() {
        let old = run(&[
            ("direct", "p50", &[10.0, 10.0], true),
            ("rdmesh", "p50", &[20.0, 20.0], true),
            ("rdmesh", "rate", &[50.0, 100.0], false),
        ]);
        let new = run(&[
            // The machine is twice as slow today.
            ("direct", "p50", &[20.0, 20.0], true),
            ("rdmesh", "p50", &[60.0, 60.0], true),
            ("rdmesh", "rate", &[60.0, 80.0], false),
        ]);
        let found = changes(&old, &new);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!((found[0].gain - 2.0 / 3.0).abs() < 1e-9, "{found:?}");
        assert!(show(&found).1);
        assert!(changes(&new, &new).is_empty());
    }

    #[test]
    fn one_round_scatters_as_the_other_run_does() {
        let three = |middle: f64| run(&[("rdmesh", "rate", &[90.0, middle, 110.0], false)]);
        let one = |value: f64| run(&[("rdmesh", "rate", &[value], false)]);
        assert!(changes(&three(100.0), &one(75.0)).is_empty());
        assert_eq!(changes(&three(100.0), &one(65.0)).len(), 1);
        assert!(changes(&one(125.0), &three(100.0)).is_empty());
        assert!(changes(&one(100.0), &one(90.0)).is_empty());
        assert_eq!(changes(&one(100.0), &one(80.0)).len(), 1);
    }
}
